"""A registry's references are parsed strictly, and some are locations in a repository."""

import string
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.locations import Reference, UploadLocation, is_content, parse_reference, upload_location

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (b"/", Reference("", "/", None)),
        (b"/v2/a/blobs/uploads/1?_state=a%3D&x", Reference("", "/v2/a/blobs/uploads/1", "_state=a%3D&x")),
        (b"/v2/a/?", Reference("", "/v2/a/", "")),
        (b"http://localhost:5000", Reference("localhost:5000", "/", None)),
        (b"http://host?x/y", Reference("host", "/", "x/y")),
        (b"HTTPS://Registry.Example/x?a/b?c", Reference("registry.example", "/x", "a/b?c")),
        (b"http://[::1]:5000/x", Reference("[::1]:5000", "/x", None)),
        (b"/a;b=c,d:@!$&'()*+~", Reference("", "/a;b=c,d:@!$&'()*+~", None)),
    ],
)
def test_a_valid_reference_is_parsed(value: bytes, read: Reference) -> None:
    """A path with an optional query, alone or after a host, is a valid reference."""
    assert parse_reference(value) == read


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"?a",
        b"v2/a",
        b"//evil.example/x",
        b"/\\evil.example",
        b"\\\\evil.example",
        b"/\t/evil.example",
        b"/\x01",
        b"/a b",
        b"/a\x7f",
        "/\u00e9".encode(),
        b"/a//b",
        b"//",
        b"/./x",
        b"/a/../../x",
        b"/a/%2e%2E/x",
        b"/a/.%2e/x",
        b"/a#b",
        b"/a%2",
        b"/a%zz",
        b"/a?b\\c",
        b"/<x>",
        b'/"x"',
        b"/{x}",
        b"/a|b",
        b"/a^b",
        b"/a`b",
        b"http:///x",
        b"http://user@host/x",
        b"http://host\\@evil/x",
        b"http://host:port/x",
        b"ftp://host/x",
        b"javascript:alert(1)",
    ],
)
def test_a_reference_that_a_client_could_read_as_another_host_is_invalid(value: bytes) -> None:
    r"""A reference that a browser would read as another host, such as `/\evil.example`, is invalid."""
    assert parse_reference(value) is None


@settings(deadline=None)
@given(
    st.one_of(
        st.text(alphabet=string.printable, max_size=30),
        st.lists(st.sampled_from(["/", "\\", "\t", "\n", "evil", ".", "..", "%2e", "%5c", "@", ":", "?", "#"])).map(
            "".join
        ),
    ).map(lambda text: "/" + text)
)
def test_a_path_that_is_accepted_stays_on_its_host(text: str) -> None:
    """Joined to the agent's address, also by a client that reads backslashes as slashes, a path keeps the host."""
    reference = parse_reference(text.encode("latin-1"))

    if reference is not None:
        for read in (text, text.replace("\\", "/")):
            assert urlsplit(urljoin("http://localhost:5000/v2/a/blobs/uploads/", read)).netloc == "localhost:5000"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v2/a/b/blobs/uploads/2f0c-9f", "_state=Ab-_9%3D%3D"),
        ("/v2/a/b/blobs/uploads/2f0c", "state=eyJvZmZzZXQiOjB9"),
        ("/v2/a/b/blobs/uploads/2f0c~1:2=", ""),
        ("/v2/a/b/blobs/uploads/1", "token"),
    ],
)
def test_any_upload_of_the_repository_is_an_upload_location(path: str, query: str) -> None:
    """A path below the repository's uploads is an upload location, with any query that the API does not use."""
    reference = Reference("", path, query or None)

    assert upload_location(reference, "a/b") == UploadLocation(path, query)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v2/a/blobs/uploads/1", ""),
        ("/v2/a/b/c/blobs/uploads/1", ""),
        ("/v2/a/b/blobs/uploads/", ""),
        ("/v2/a/b/blobs/uploads/1/2", ""),
        ("/v2/a/b/blobs/uploads/%31", ""),
        ("/v2/a/b/blobs/1", ""),
        ("/upload/1", ""),
        ("/v2/a/b/blobs/uploads/1", "x=1&digest=sha256:1"),
        ("/v2/a/b/blobs/uploads/1", "x=1&d%69gest=sha256:1"),
        ("/v2/a/b/blobs/uploads/1", "mount=x&from=secret"),
        ("/v2/a/b/blobs/uploads/1", "x=1;from=secret"),
        ("/v2/a/b/blobs/uploads/1", "x" * 4097),
    ],
)
def test_anything_else_is_not_an_upload_location(path: str, query: str) -> None:
    """A path elsewhere, or a query with a parameter of the API, is not an upload location."""
    assert upload_location(Reference("", path, query), "a/b") is None


def test_blobs_and_manifests_of_the_repository_are_content() -> None:
    """Blobs and manifests of the repository are its content; those of another one, and anything else, are not."""
    kept = [f"/v2/a/blobs/{DIGEST}", f"/v2/a/manifests/{DIGEST}", "/v2/a/manifests/v1"]
    other = [f"/v2/b/blobs/{DIGEST}", "/v2/a/tags/list", "/x", "/v2/a/blobs/x", "/v2/"]

    assert [path for path in (*kept, *other) if is_content(Reference("", path, None), "a")] == kept
