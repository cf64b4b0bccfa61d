"""Location and Link lead through the gate, or are not forwarded."""

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


def rewritten(status: int, *locations: str) -> str | None:
    """Return the Location that the agent gets in the response to a push to team/app."""
    lines = [f"Location: {location}" for location in locations]
    raw = "\r\n".join((f"HTTP/1.1 {status} X", *lines, "Content-Length: 0", "", "")).encode("latin-1")
    return rewrite_location(parse_response_head("PUT", raw), PUSH, HOST, TARGET)


@pytest.mark.parametrize("status", [201, 202, 307, 416])
@pytest.mark.parametrize("start", ["http://localhost:5000", "https://localhost:5000", "HTTP://127.0.0.1:5001"])
def test_a_location_on_this_registry_leads_through_the_gate(status: int, start: str) -> None:
    """A Location on this registry gets the agent's host, with path and query unchanged."""
    assert rewritten(status, f"{start}/v2/x?a=%3D&x") == "http://localhost:5000/v2/x?a=%3D&x"


def test_a_relative_location_is_unchanged() -> None:
    """A relative Location is unchanged, and a response without one gets none."""
    assert rewritten(202, "/v2/a/b?x=y") == "/v2/a/b?x=y"
    assert rewritten(202) is None


@pytest.mark.parametrize("path", [f"blobs/{DIGEST}", f"manifests/{DIGEST}", "manifests/v1"])
def test_content_of_the_same_repository_leads_through_the_gate_for_any_host(path: str) -> None:
    """A Location of content in the same repository leads through the gate, with any host that the registry writes."""
    location = rewritten(201, f"https://registry.example/v2/team/app/{path}")

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
def test_a_location_outside_of_the_repository_is_an_error(location: str) -> None:
    """A Location outside of the repository is an error that shows it and the settings to correct."""
    with pytest.raises(UnusableLocationError, match=r"correct http\.host and http\.prefix"):
        rewritten(201, location)


@pytest.mark.parametrize(
    "location", ["https://bucket.s3.amazonaws.com/x", f"https://cdn/v2/team/app/blobs/{DIGEST}", "/\\evil.example"]
)
def test_a_redirect_to_another_host_is_an_error(location: str) -> None:
    """A redirect to another host is an error; rewritten, it would lead to itself."""
    with pytest.raises(RedirectedElsewhereError, match=r"storage\.redirect\.disable"):
        rewritten(307, location)


def test_a_response_with_two_locations_is_an_error() -> None:
    """A response with two Locations is an error, since the gate and the client could use different ones."""
    with pytest.raises(RegistryUnavailableError, match="more than one Location"):
        rewritten(201, "/v2/a", "/v2/b")


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
def test_page_links_to_another_host_are_dropped(value: bytes, links: list[str]) -> None:
    """A link to a next page is forwarded only if it leads to this registry."""
    assert list(rewrite_links(value, HOST, TARGET)) == links
