"""Rewrites Location and Link in the registry's responses, so that they lead through the gate.

There are three cases to consider for a Location (RFC 9110, section 10.2.2):

- A redirect may lead to another path of this registry. A redirect to another host would bypass the tunnel: refused.
- A 201 or 202 has the location of a blob, a manifest or an upload. A registry with `http.host` in its configuration
  always writes that host there, so the host is ignored if the path is in the repository of the request.
- The location of an upload is replaced by one of the gate's own; see `uploads.py`.
"""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.locations import Reference, is_content, parse_reference
from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.head_parser import ResponseHead

_LINK: Final = re.compile(rb"<([^<>]*)>(.*)")
_MAX_SHOWN: Final = 200


class RedirectedElsewhereError(RegistryUnavailableError):
    """The registry redirects the agent to a host outside of the tunnel."""

    code = "registry-redirects"

    def __init__(self, location: bytes) -> None:
        super().__init__(
            f"the registry redirects to {_shown(location)}, which the agent cannot reach through the tunnel: "
            "set storage.redirect.disable: true in its config"
        )


class UnusableLocationError(RegistryUnavailableError):
    """The registry sent a Location that the agent cannot use."""

    code = "registry-location"

    def __init__(self, status: int, location: bytes, repository: str) -> None:
        super().__init__(
            f"the registry answered {status} with the location {_shown(location)}, which is not a valid location in "
            f"repository {repository}: correct http.host and http.prefix in its config, or leave them out"
        )


def location_of(response: ResponseHead) -> bytes | None:
    """Return the value of the response's Location, None without one; raises RegistryUnavailableError for two."""
    values = [value for name, value in response.fields if name == b"location"]
    if len(values) > 1:
        raise RegistryUnavailableError("the registry's response has more than one Location")
    return values[0] if values else None


def is_local(reference: Reference, host: str, target: Endpoint) -> bool:
    """Whether a reference leads to this registry, under the agent's name for it or under the controller's."""
    return reference.authority in {"", host.lower(), str(target)}


def rewrite_location(response: ResponseHead, request: RegistryRequest, host: str, target: Endpoint) -> str | None:
    """Return the Location for the agent, None without one; raises RegistryUnavailableError if it cannot be used."""
    value = location_of(response)
    if value is None:
        return None
    reference = parse_reference(value)
    if reference is not None and is_local(reference, host, target):
        return _through_gate(reference, host)
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        raise RedirectedElsewhereError(value)
    if reference is None or not is_content(reference, request.repository):
        raise UnusableLocationError(response.status, value, request.repository)
    return _through_gate(reference, host)


def rewrite_links(value: bytes, host: str, target: Endpoint) -> Iterator[str]:
    """Yield a link to a next page (OCI distribution spec, "Listing Tags"), unless it leads to another host."""
    matched = _LINK.fullmatch(value)
    reference = parse_reference(matched[1]) if matched else None
    if matched and reference is not None and is_local(reference, host, target):
        yield f"<{_through_gate(reference, host)}>{matched[2].decode('latin-1')}"


def _through_gate(reference: Reference, host: str) -> str:
    return f"http://{host}{reference.target}" if reference.authority else reference.target


def _shown(location: bytes) -> str:
    return repr(location[:_MAX_SHOWN].decode("latin-1"))
