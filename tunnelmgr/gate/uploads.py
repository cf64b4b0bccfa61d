"""The locations of uploads that agents get: each one proves who began the upload, and where the registry continues it.

A registry chooses the location of an upload, and only the registry understands it (OCI distribution spec, "Pushing
blobs"). The agent gets another location, `/v2/<repository>/blobs/uploads/<id>?state=<proof>.<place>`. `place` is the
registry's own location, encoded and not interpreted; `proof` is an HMAC-SHA-256 (RFC 2104) over it and over everything
in `Upload`, under the secret in the controller's state. So the gate stores nothing:

- An upload belongs to the agent, not to its channel, its tunnel or this process: after a reconnect or a restart of the
  controller the agent can resume it.
- A location that was altered, or that was given to another agent or incarnation, or for another repository or registry,
  is refused; clients get BLOB_UPLOAD_UNKNOWN (OCI distribution spec, "Error Codes") and start again. Nothing that an
  agent wrote becomes part of the registry's location.
- The registry bounds the number of open uploads: it knows them, and drops those that are not continued.
"""

import hashlib
import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import UploadLocation
from tunnelmgr.core.tunnel import Endpoint

_PURPOSE: Final = "upload 1"
"""Distinguishes these proofs from any other use of the same secret, and this form of them from later ones."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload: who began it, to which registry and repository, and the id in the location that the agent has."""

    agent: AgentId
    incarnation: str
    registry: Endpoint
    repository: str
    id: str


def new_id() -> str:
    """Return an upload id that cannot be guessed."""
    return secrets.token_hex(16)


class UploadProofs:
    """Makes and checks the `state` in the locations of uploads, under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def state(self, upload: Upload, location: UploadLocation) -> str:
        """Return the `state` with which the agent continues an upload that the registry continues at `location`."""
        name = location.path.rpartition("/")[2]
        place = urlsafe_b64encode(f"{name}?{location.query}".encode()).decode().rstrip("=")
        return f"{self._proof(upload, place)}.{place}"

    def location(self, upload: Upload, state: str) -> UploadLocation | None:
        """Return where the registry continues an upload, None unless `state` was made for this upload."""
        proof, _, place = state.partition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(upload, place).encode()):
            return None
        name, _, query = urlsafe_b64decode(place + "=" * (-len(place) % 4)).decode().partition("?")
        return UploadLocation(f"/v2/{upload.repository}/blobs/uploads/{name}", query)

    def _proof(self, upload: Upload, place: str) -> str:
        # JSON, so that no two lists of parts have the same text.
        bound = (_PURPOSE, upload.agent, upload.incarnation, str(upload.registry), upload.repository, upload.id, place)
        return hmac.new(self._secret, json.dumps(bound).encode(), hashlib.sha256).hexdigest()
