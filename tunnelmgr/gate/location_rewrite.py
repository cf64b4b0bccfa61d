"""Where an answer leads the agent: Location and Link, led back through the gate or not passed on.

There are three cases to consider for a Location (RFC 9110, section 10.2.2):

- A redirect may lead to another path of this registry. One to another host would lead past the tunnel.
- A 201 or 202 names a blob, a manifest or an upload. A registry that has `http.host` in its configuration writes that
  host there, whoever asked; then the path counts, if it is one of the very repository that the request was about.
- An upload's location is replaced by one of our own; see `uploads`.
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
_LONGEST_SHOWN: Final = 200


class RedirectedElsewhereError(RegistryUnavailableError):
    """The registry answered with a redirect past the tunnel."""

    code = "registry-redirects"

    def __init__(self, location: bytes) -> None:
        super().__init__(
            f"the registry redirects to {_shown(location)}, which the agent cannot reach through the tunnel: "
            "set storage.redirect.disable: true in its config"
        )


class UnusableLocationError(RegistryUnavailableError):
    """The registry named a place for what was pushed where the agent cannot go on."""

    code = "registry-location"

    def __init__(self, status: int, location: bytes, repository: str) -> None:
        super().__init__(
            f"the registry answered {status} with the location {_shown(location)}, which is none of repository "
            f"{repository}: correct http.host and http.prefix in its config, or leave them out"
        )


def location_of(answer: ResponseHead) -> bytes | None:
    """Return the value of the answer's Location, None without one; raises RegistryUnavailableError for two."""
    values = [value for name, value in answer.fields if name == b"location"]
    if len(values) > 1:
        raise RegistryUnavailableError("the registry's answer has more than one Location")
    return values[0] if values else None


def leads_here(reference: Reference, host: str, target: Endpoint) -> bool:
    """Whether a reference leads to this registry, by the name that the agent has for it or by our own."""
    return reference.authority in {"", host.lower(), str(target)}


def rewrite_location(answer: ResponseHead, request: RegistryRequest, host: str, target: Endpoint) -> str | None:
    """Return the Location to tell the agent, None without one; raises RegistryUnavailableError if it is not usable."""
    value = location_of(answer)
    if value is None:
        return None
    reference = parse_reference(value)
    if reference is not None and leads_here(reference, host, target):
        return _through_gate(reference, host)
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
        raise RedirectedElsewhereError(value)
    if reference is None or not is_content(reference, request.repository):
        raise UnusableLocationError(answer.status, value, request.repository)
    return _through_gate(reference, host)


def rewrite_links(value: bytes, host: str, target: Endpoint) -> Iterator[str]:
    """Keep a page link (OCI distribution spec, "Listing Tags") that stays here; one that leads elsewhere is no use."""
    matched = _LINK.fullmatch(value)
    reference = parse_reference(matched[1]) if matched else None
    if matched and reference is not None and leads_here(reference, host, target):
        yield f"<{_through_gate(reference, host)}>{matched[2].decode('latin-1')}"


def _through_gate(reference: Reference, host: str) -> str:
    return f"http://{host}{reference.target}" if reference.authority else reference.target


def _shown(location: bytes) -> str:
    return repr(location[:_LONGEST_SHOWN].decode("latin-1"))
