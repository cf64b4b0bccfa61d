r"""Parses the references in a registry's Location and Link fields, strictly.

A reference is an absolute path with an optional query, alone or after `http://` or `https://` and a host (RFC 3986,
sections 3 and 4.2; RFC 9112, section 3.2.1). It has characters of that grammar only, no fragment, no user name, and no
empty or dot segment, so that no client can read it as a reference to another host. `/\evil.example` is invalid.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from tunnelmgr.core.oci import Route, classify
from tunnelmgr.errors import MalformedRequestError

_CHARACTER: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_REFERENCE: Final = re.compile(
    r"(?:https?://([A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?))?"
    rf"(/(?:{_CHARACTER}+(?:/{_CHARACTER}+)*/?)?)?(?:\?((?:{_CHARACTER}|[/?])*))?",
    re.IGNORECASE,
)
_UPLOAD_ID: Final = re.compile(r"[A-Za-z0-9._~=:+-]{1,256}")
_MAX_QUERY: Final = 4096
"""Characters in the query of an upload's location; docker-registry uses about 300."""
_API_PARAMETERS: Final = frozenset({"digest", "digest-algorithm", "mount", "from", "tag"})
"""Parameters with a meaning in the API; a query that the gate does not parse must not contain them."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A valid reference; `authority` is empty if there is only a path, `query` is None if there is none."""

    authority: str
    path: str
    query: str | None

    @property
    def target(self) -> str:
        """Path and query."""
        return self.path if self.query is None else f"{self.path}?{self.query}"


@dataclass(frozen=True, slots=True)
class UploadLocation:
    """Where a registry continues an upload: a path, and a query that only the registry understands."""

    path: str
    query: str


def parse_reference(value: bytes) -> Reference | None:
    """Parse a reference; returns None if it is invalid."""
    matched = _REFERENCE.fullmatch(value.decode("latin-1"))
    if matched is None or (matched[1] is None and matched[2] is None):
        return None
    path = matched[2] or "/"
    if {".", ".."} & set(path.replace("%2e", ".").replace("%2E", ".").split("/")):
        return None
    return Reference((matched[1] or "").lower(), path, matched[3])


def upload_location(reference: Reference, repository: str) -> UploadLocation | None:
    """Return where an upload to the repository continues, None if the reference is not a location of an upload.

    The spec leaves the location to the registry (OCI distribution spec, "Pushing blobs"). The gate requires that it is
    below the repository's uploads, and that its query has no parameter of the API.
    """
    start, _, upload = reference.path.rpartition("/")
    query = reference.query or ""
    if start != f"/v2/{repository}/blobs/uploads" or not _UPLOAD_ID.fullmatch(upload):
        return None
    if len(query) > _MAX_QUERY or ";" in query:
        return None
    if any(name in _API_PARAMETERS for name, _ in parse_qsl(query, keep_blank_values=True)):
        return None
    return UploadLocation(reference.path, query)


def is_content(reference: Reference, repository: str) -> bool:
    """Whether a reference is the location of a blob or a manifest of the repository."""
    try:
        request = classify("GET", reference.target)
    except MalformedRequestError:
        return False
    return request.repository == repository and request.route in {Route.BLOB, Route.MANIFEST}
