"""Location and Link: led back through the gate, or not passed on."""

import pytest

from tunnelmgr.core.oci import classify
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.head_parser import parse_response_head
from tunnelmgr.gate.location_rewrite import (
    RedirectedElsewhereError,
    UnusableLocationError,
    rewrite_links,
    rewrite_location,
)

TARGET = Endpoint("127.0.0.1", 5001)
HOST = "localhost:5000"
DIGEST = "sha256:" + "a" * 64
PUSH = classify("PUT", "/v2/team/app/manifests/v1")


def told(status: int, *locations: str) -> str | None:
    """Return the Location that the agent is told of an answer to a push to team/app."""
    lines = [f"Location: {location}" for location in locations]
    raw = "\r\n".join((f"HTTP/1.1 {status} X", *lines, "Content-Length: 0", "", "")).encode("latin-1")
    return rewrite_location(parse_response_head("PUT", raw), PUSH, HOST, TARGET)


@pytest.mark.parametrize("status", [201, 202, 307, 416])
@pytest.mark.parametrize("start", ["http://localhost:5000", "https://localhost:5000", "HTTP://127.0.0.1:5001"])
def test_a_location_here_leads_back_through_the_gate(status: int, start: str) -> None:
    """Its path and query stay as they are."""
    assert told(status, f"{start}/v2/x?a=%3D&x") == "http://localhost:5000/v2/x?a=%3D&x"


def test_a_relative_location_stays() -> None:
    """It leads back as it is; and where there is none, none is told."""
    assert told(202, "/v2/a/b?x=y") == "/v2/a/b?x=y"
    assert told(202) is None


@pytest.mark.parametrize("path", [f"blobs/{DIGEST}", f"manifests/{DIGEST}", "manifests/v1"])
def test_content_of_the_same_repository_is_led_back_whatever_host_is_named(path: str) -> None:
    """A registry with `http.host` in its configuration names that host to everybody."""
    location = told(201, f"https://registry.example/v2/team/app/{path}")

    assert location == f"http://localhost:5000/v2/team/app/{path}"


@pytest.mark.parametrize(
    "location",
    [
        f"https://registry.example/v2/other/app/blobs/{DIGEST}",
        "https://registry.example/v2/team/app/tags/list",
        "https://registry.example/x",
        "http://localhost:5000.evil/x",
        "//other/x",
        "other",
        "ftp://x/",
        "/\\evil.example",
        "/\t/evil.example",
    ],
)
def test_a_location_elsewhere_is_not_passed_on(location: str) -> None:
    """The error names it and what to set right in the registry's configuration."""
    with pytest.raises(UnusableLocationError, match=r"correct http\.host and http\.prefix"):
        told(201, location)


@pytest.mark.parametrize(
    "location", ["https://bucket.s3.amazonaws.com/x", f"https://cdn/v2/team/app/blobs/{DIGEST}", "/\\evil.example"]
)
def test_a_redirect_elsewhere_is_not_passed_on(location: str) -> None:
    """Trap 24: it would lead past the tunnel; rewritten, a redirect to another host would lead to itself."""
    with pytest.raises(RedirectedElsewhereError, match=r"storage\.redirect\.disable"):
        told(307, location)


def test_an_answer_with_two_locations_is_broken() -> None:
    """The gate and the client could each read another one."""
    with pytest.raises(RegistryUnavailableError, match="more than one Location"):
        told(201, "/v2/a", "/v2/b")


@pytest.mark.parametrize(
    ("value", "links"),
    [
        (b'</v2/_catalog?n=1&last=a>; rel="next"', ['</v2/_catalog?n=1&last=a>; rel="next"']),
        (b'<http://127.0.0.1:5001/v2/x>; rel="next"', ['<http://localhost:5000/v2/x>; rel="next"']),
        (b"<http://evil/v2/x>", []),
        (b"</\\evil/v2/x>", []),
        (b"odd", []),
    ],
)
def test_page_links_stay_only_if_they_lead_back(value: bytes, links: list[str]) -> None:
    """A link elsewhere is left out, since it is of no use to the agent."""
    assert list(rewrite_links(value, HOST, TARGET)) == links
