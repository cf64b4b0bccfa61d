"""Begins and finds the uploads by which members of a cluster verify that their registries are one.

Every function blocks for at most a few times `TIMEOUT` and raises nothing.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from tunnelmgr.core.locations import UploadLocation, parse_reference, upload_location
from tunnelmgr.core.registry_sharing import REPOSITORY, Sharing, sharing_of
from tunnelmgr.core.tunnel import Endpoint

TIMEOUT: Final = 5.0
"""Seconds for each step of a request."""
MAX_ERROR_BYTES: Final = 65536
"""Bytes of an error's body that are read."""


@dataclass(frozen=True, slots=True)
class StartedUpload:
    """Whether a registry has started an upload; `location` is path and query, empty if it has not."""

    sharing: Sharing
    location: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    location: str
    code: str


def start_upload(registry: Endpoint) -> StartedUpload:
    """Begin an upload (OCI distribution spec, end-4a)."""
    try:
        response = _request(registry, "POST", f"/v2/{REPOSITORY}/blobs/uploads/")
    except (OSError, HTTPException) as failed:
        return StartedUpload(Sharing.NO_ANSWER, error=_message(registry, failed))
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return StartedUpload(Sharing.READ_ONLY)
    reference = parse_reference(response.location.encode("latin-1", "replace"))
    location = None if reference is None else upload_location(reference, REPOSITORY)
    if response.status != HTTPStatus.ACCEPTED or location is None:
        error = f"{registry} answers {_shown(response)} to the start of an upload, not 202 with a location"
        return StartedUpload(Sharing.NO_ANSWER, error=error)
    return StartedUpload(Sharing.YES, _target(location))


def find_upload(registry: Endpoint, location: str) -> tuple[Sharing, str]:
    """Return what a registry says of an upload that another registry has started, and what is wrong (end-13)."""
    reference = parse_reference(location.encode("latin-1", "replace"))
    if reference is None or (valid := upload_location(reference, REPOSITORY)) is None:
        return Sharing.NO_ANSWER, "the database has an invalid location"
    try:
        response = _request(registry, "GET", _target(valid))
    except (OSError, HTTPException) as failed:
        return Sharing.NO_ANSWER, _message(registry, failed)
    sharing = sharing_of(response.status, response.code)
    if sharing is not Sharing.NO_ANSWER:
        return sharing, ""
    return sharing, f"{registry} answers {_shown(response)} to the request for an upload"


def keep_upload(registry: Endpoint, location: str) -> StartedUpload:
    """Return the upload at `location` if this registry still has it; otherwise begin one. Empty means none."""
    if location and find_upload(registry, location)[0] is Sharing.YES:
        return StartedUpload(Sharing.YES, location)
    return start_upload(registry)


def _request(registry: Endpoint, method: str, target: str) -> _Response:
    """Send one request on a connection of its own; raises OSError or HTTPException."""
    connection = HTTPConnection(registry.host, registry.port, timeout=TIMEOUT)
    try:
        connection.request(method, target, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(MAX_ERROR_BYTES)
        return _Response(response.status, response.getheader("Location", ""), _error_code(body))
    finally:
        connection.close()


def _error_code(body: bytes) -> str:
    """Return the code of the first error (OCI distribution spec, "Error Codes"); empty if there is none."""
    try:
        errors = json.loads(body)["errors"]
        return str(errors[0]["code"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _target(location: UploadLocation) -> str:
    return f"{location.path}?{location.query}" if location.query else location.path


def _shown(response: _Response) -> str:
    return f"{response.status} {response.code}".rstrip()


def _message(registry: Endpoint, failed: Exception) -> str:
    if isinstance(failed, TimeoutError):
        return f"{registry} does not answer within {TIMEOUT:g} s"
    reason = (failed.strerror or str(failed)) if isinstance(failed, OSError) else "it does not speak HTTP"
    return f"{registry}: {reason}"
