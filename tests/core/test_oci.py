"""Every endpoint of the API has one classification, and nothing else is accepted."""

import re
import string
from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.oci import (
    MAX_PARAMETERS,
    BodyKind,
    RegistryAction,
    Route,
    at_location,
    classify,
    is_repository_name,
    without_mount,
)
from tunnelmgr.errors import MalformedRequestError

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
UPLOAD = "/v2/team/app/blobs/uploads/2f0c9f4e-6a7e-4a5b-9a51-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("method", "target", "action", "reference"),
    [
        ("GET", "/v2/", RegistryAction.BASE, ""),
        ("HEAD", "/v2/", RegistryAction.BASE, ""),
        ("GET", f"/v2/team/app/blobs/{DIGEST}", RegistryAction.PULL, DIGEST),
        ("HEAD", f"/v2/team/app/blobs/{DIGEST}", RegistryAction.PULL, DIGEST),
        ("GET", "/v2/team/app/manifests/v1", RegistryAction.PULL, "v1"),
        ("HEAD", f"/v2/team/app/manifests/{DIGEST}", RegistryAction.PULL, DIGEST),
        ("POST", "/v2/team/app/blobs/uploads/", RegistryAction.PUSH, ""),
        ("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}", RegistryAction.PUSH, ""),
        ("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=sha512", RegistryAction.PUSH, ""),
        ("PATCH", UPLOAD, RegistryAction.PUSH, UPLOAD[-36:]),
        ("PUT", f"{UPLOAD}?digest={DIGEST}", RegistryAction.PUSH, UPLOAD[-36:]),
        ("PUT", "/v2/team/app/manifests/v1", RegistryAction.PUSH, "v1"),
        ("GET", "/v2/team/app/tags/list", RegistryAction.PULL, ""),
        ("GET", "/v2/team/app/tags/list?n=10&last=v1", RegistryAction.PULL, ""),
        ("DELETE", "/v2/team/app/manifests/v1", RegistryAction.DELETE, "v1"),
        ("DELETE", f"/v2/team/app/blobs/{DIGEST}", RegistryAction.DELETE, DIGEST),
        ("POST", f"/v2/team/app/blobs/uploads/?mount={DIGEST}&from=base/os", RegistryAction.PUSH, ""),
        ("GET", f"/v2/team/app/referrers/{DIGEST}", RegistryAction.PULL, DIGEST),
        ("GET", f"/v2/team/app/referrers/{DIGEST}?artifactType=application%2Fx%2Bjson", RegistryAction.PULL, DIGEST),
        ("GET", UPLOAD, RegistryAction.PUSH, UPLOAD[-36:]),
        ("DELETE", UPLOAD, RegistryAction.PUSH, UPLOAD[-36:]),
        ("HEAD", UPLOAD, RegistryAction.PUSH, UPLOAD[-36:]),
        ("GET", "/v2/_catalog?n=100", RegistryAction.CATALOG, ""),
        ("GET", "/.well-known/tunnelmgr", RegistryAction.WELL_KNOWN, ""),
    ],
)
def test_every_endpoint_of_the_api_is_known(method: str, target: str, action: RegistryAction, reference: str) -> None:
    """Every endpoint of the spec (end-1 to end-14), the catalog and the gate's own path are classified."""
    request = classify(method, target)

    assert request.action is action
    assert request.reference == reference
    assert request.repository == ("team/app" if "team/app" in target else "")


@pytest.mark.parametrize(
    "target",
    [
        "",
        "v2/",
        "/v2/%73ecret/manifests/v1",
        "/v2/secret%2Fapp/manifests/v1",
        "/v2/team%2fapp/tags/list",
        "/v2//team/manifests/v1",
        "//v2/team/manifests/v1",
        "/v2/team/../secret/manifests/v1",
        "/v2/./team/manifests/v1",
        "/v2/team/manifests/..",
        "/v2/team;x/manifests/v1",
        "/v2/team\\app/manifests/v1",
        "/v2/team/manifests/v1#x",
        "/v2/teäm/manifests/v1",
        "/v2/team/manifests/v 1",
        "/v2/team/manifests/v%31",
        "/v2/%2e%2e",
        "http://other/v2/",
        "*",
    ],
)
def test_an_ambiguous_path_is_refused(target: str) -> None:
    """A path that the registry would decode or clean, and so read differently from the policy, is refused."""
    with pytest.raises(MalformedRequestError):
        classify("GET", target)


@pytest.mark.parametrize(
    "name",
    [
        "secret/tags/list",
        "a/manifests",
        "blobs/a",
        "referrers",
        "a/uploads/b",
        "_a",
        "a/_b",
        "Team",
        "a__",
        "-a",
        "a..b",
        "a___b",
        "localhost:5000/a",
        "a" * 256,
        "a/" * 127 + "ab",
    ],
)
def test_an_invalid_repository_name_is_refused(name: str) -> None:
    """A repository name that is invalid, or has a word of the API as a component, is refused."""
    with pytest.raises(MalformedRequestError):
        classify("GET", f"/v2/{name}/tags/list")


@pytest.mark.parametrize("name", ["a", "a/b/c", "a.b", "a_b", "a__b", "a---b", "a" * 255, "list", "v2"])
def test_a_valid_repository_name_is_accepted(name: str) -> None:
    """A valid repository name of up to 255 characters is accepted."""
    assert classify("GET", f"/v2/{name}/tags/list").repository == name


def test_an_empty_name_is_refused() -> None:
    """A path with an empty repository name is refused."""
    with pytest.raises(MalformedRequestError):
        classify("GET", "/v2/tags/list")


@pytest.mark.parametrize("colon", [":", "%3A", "%3a"])
def test_a_digests_colon_may_be_percent_encoded(colon: str) -> None:
    """A digest's colon may be percent-encoded, and the registry gets it unencoded."""
    request = classify("GET", f"/v2/team/app/blobs/sha256{colon}{HEX}")

    assert request.target() == f"/v2/team/app/blobs/{DIGEST}"


@pytest.mark.parametrize(
    "path",
    [
        "blobs/v1",
        "blobs/sha256:abc",
        f"blobs/sha256:{HEX.upper()}",
        "blobs/uploads",
        "referrers/v1",
        "manifests/",
        "manifests/.v1",
        "manifests/" + "v" * 129,
        f"manifests/sha256:{HEX}0",
        "manifests/a:b:c",
        f"blobs/sha256%3A%3A{HEX}",
    ],
)
def test_an_invalid_tag_or_digest_is_refused(path: str) -> None:
    """A reference that is neither a valid tag nor a valid digest is refused."""
    with pytest.raises(MalformedRequestError):
        classify("GET", f"/v2/team/app/{path}")


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("GET", "/v2/?n=1", "unknown query parameter 'n'; known for this request: none"),
        ("GET", "/v2/a/tags/list?n=1&n=2", "n is given twice"),
        ("GET", "/v2/a/tags/list?n=1&", "unknown query parameter ''; known for this request: n, last, ns"),
        ("GET", "/v2/a/tags/list?n", "invalid value for the query parameter n: ''"),
        ("GET", "/v2/a/tags/list?n=x", "invalid value for the query parameter n: 'x'"),
        ("GET", "/v2/a/tags/list?n=1;last=b", "the query contains ';', which is not allowed"),
        ("GET", "/v2/a/tags/list?%6e=1", "unknown query parameter '%6e'"),
        ("GET", "/v2/a/tags/list?last=a/b", "invalid value for the query parameter last"),
        ("GET", "/v2/_catalog?last=A", "invalid value for the query parameter last"),
        ("GET", "/v2/a/manifests/v1?mount=x", "unknown query parameter 'mount'"),
        ("PUT", "/v2/a/manifests/v1?digest=x", "unknown query parameter 'digest'"),
        ("GET", f"/v2/a/referrers/{DIGEST}?artifactType=a+b/c", "query parameter artifactType"),
        ("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=_b", "query parameter from: '_b'"),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=SHA512", "query parameter digest-algorithm: 'SHA512'"),
        ("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=b&from=c", "from is given twice"),
        ("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&digest={DIGEST}", "digest and mount exclude each other"),
        ("PATCH", f"{UPLOAD}?state=a%20b", "query parameter state: 'a%20b'"),
        ("PATCH", f"{UPLOAD}?_state=a", "unknown query parameter '_state'; known for this request: state"),
        ("PATCH", f"{UPLOAD}?digest={DIGEST}", "unknown query parameter 'digest'"),
        ("GET", "/v2/a/tags/list?n=1?n=2", "the query contains '?'"),
        ("PUT", f"/v2/a/manifests/{DIGEST}?tag=.a", "query parameter tag: '.a'"),
        ("PUT", f"/v2/a/manifests/{DIGEST}?tag=a&tag=a", "tag is given twice"),
        ("PUT", "/v2/a/manifests/v1?tag=a", "tag is allowed only in a push by digest"),
        ("GET", f"/v2/a/manifests/{DIGEST}?tag=a", "unknown query parameter 'tag'"),
        ("GET", "/v2/a/manifests/v1?ns=a/b", "query parameter ns: 'a/b'"),
        ("GET", "/v2/a/manifests/v1?ns=", "query parameter ns: ''"),
        ("GET", "/v2/a/manifests/v1?ns=a&ns=b", "ns is given twice"),
        ("PUT", "/v2/a/manifests/v1?ns=docker.io", "unknown query parameter 'ns'"),
    ],
)
def test_an_invalid_query_is_refused(method: str, target: str, message: str) -> None:
    """A query parameter that is unknown, repeated or invalid is refused with an error that names it."""
    with pytest.raises(MalformedRequestError, match=re.escape(message)) as refused:
        classify(method, target)

    assert refused.value.oci_code == "UNSUPPORTED"


def test_a_query_has_a_bounded_number_of_parameters() -> None:
    """A query with more than `MAX_PARAMETERS` parameters is refused, since each tag may cost a request."""
    path, tags = f"/v2/a/manifests/{DIGEST}", [f"tag=v{number}" for number in range(MAX_PARAMETERS + 1)]

    assert len(classify("PUT", f"{path}?{'&'.join(tags[1:])}").tags) == MAX_PARAMETERS
    with pytest.raises(MalformedRequestError, match="at most 32 parameters"):
        classify("PUT", f"{path}?{'&'.join(tags)}")


def test_errors_have_the_codes_of_the_oci_spec() -> None:
    """An invalid path has the code NAME_INVALID, an invalid digest in the query DIGEST_INVALID."""
    for target, code in (
        ("/v2/A/tags/list", "NAME_INVALID"),
        ("/v2/a//tags/list", "NAME_INVALID"),
        ("/v2/a/manifests/%31", "NAME_INVALID"),
        ("/v2/a/blobs/v1", "NAME_INVALID"),
    ):
        with pytest.raises(MalformedRequestError) as refused:
            classify("GET", target)
        assert refused.value.oci_code == code
    for query in ("digest=x", "mount=sha256:1&from=a"):
        with pytest.raises(MalformedRequestError, match="invalid value for the query parameter") as refused:
            classify("POST", f"/v2/a/blobs/uploads/?{query}")
        assert refused.value.oci_code == "DIGEST_INVALID"


@pytest.mark.parametrize(
    "ns", ["docker.io", "localhost:5000", "%5B%3A%3A1%5D%3A5000", "registry-1.docker.io", "GHCR.io"]
)
@pytest.mark.parametrize(
    "target", ["/v2/a/manifests/v1", f"/v2/a/manifests/{DIGEST}", f"/v2/a/blobs/{DIGEST}", "/v2/a/tags/list"]
)
def test_the_parameter_ns_is_accepted_and_not_forwarded(target: str, ns: str) -> None:
    """The parameter `ns`, which containerd and BuildKit send to a mirror, is kept in lower case and not forwarded."""
    mirrored, plain = classify("GET", f"{target}?ns={ns}"), classify("GET", target)

    assert mirrored == replace(plain, namespace=unquote(ns).lower())
    assert mirrored.target() == plain.target() == target


def test_a_push_by_digest_may_have_tags() -> None:
    """The tags of a push by digest are forwarded, and each counts as a tag that is written."""
    target = f"/v2/a/manifests/{DIGEST}?tag=v1&tag=v1.0"

    request = classify("PUT", target)

    assert (request.tags, request.target(), request.reference) == (("v1", "v1.0"), target, DIGEST)


def test_an_upload_continues_at_the_registrys_location() -> None:
    """The registry's path and query replace the agent's, followed only by the endpoint's own parameters."""
    request = classify("PUT", f"{UPLOAD}?state=open&digest=sha256%3A{HEX}")

    placed = at_location(request, "/v2/team/app/blobs/uploads/7", "_state=Ab%3D%3D")

    assert placed.target() == f"/v2/team/app/blobs/uploads/7?_state=Ab%3D%3D&digest=sha256%3A{HEX}"
    assert at_location(request, "/x", "").target() == f"/x?digest=sha256%3A{HEX}"
    assert at_location(classify("GET", UPLOAD), "/x", "y").target() == "/x?y"


def test_a_mount_has_its_source() -> None:
    """The source of a mount is part of the request, since the policy decides about it too (end-11)."""
    request = classify("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=base%2Fos")

    assert request.mount_from == "base/os"


def test_a_source_without_a_mount_is_ignored() -> None:
    """The parameter `from` without `mount` is not the source of a mount."""
    request = classify("POST", "/v2/a/blobs/uploads/?from=base/os")

    assert request.mount_from == ""
    assert without_mount(request).query == ()


def test_without_mount_leaves_an_ordinary_upload() -> None:
    """`without_mount` removes `mount` and `from`, and nothing else."""
    request = without_mount(classify("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=base/os"))

    assert request.target() == "/v2/a/blobs/uploads/"
    assert request.mount_from == ""


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/v1/_ping"),
        ("GET", "/v2"),
        ("GET", "/v2/team/"),
        ("GET", "/debug/health"),
        ("GET", "/v2/token"),
        ("OPTIONS", "/v2/"),
        ("POST", "/v2/team/app/manifests/v1"),
        ("PATCH", "/v2/team/app/manifests/v1"),
        ("GET", "/v2/team/app/blobs/uploads/"),
        ("DELETE", "/v2/_catalog"),
        ("GET", "/.well-known/other"),
    ],
)
def test_a_valid_path_that_is_not_an_endpoint_is_unknown(method: str, target: str) -> None:
    """A valid path or method that is not in the API has the action UNKNOWN, which no policy allows."""
    request = classify(method, target)

    assert (request.action, request.route) == (RegistryAction.UNKNOWN, Route.UNKNOWN)


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v2/a/manifests/v1", BodyKind.NONE),
        ("PUT", "/v2/a/manifests/v1", BodyKind.MANIFEST),
        ("POST", "/v2/a/blobs/uploads/", BodyKind.BLOB),
        ("PATCH", UPLOAD, BodyKind.BLOB),
        ("DELETE", UPLOAD, BodyKind.NONE),
    ],
)
def test_a_request_has_the_kind_of_its_body(method: str, target: str, body: BodyKind) -> None:
    """A request has the kind of its body, which decides what Content-Type the registry gets."""
    assert classify(method, target).body is body


_METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", ""])
_WORDS = st.sampled_from(
    [
        *("v2", "team", "secret", "manifests", "blobs", "uploads", "tags", "list", "referrers", "_catalog", "_x", "v1"),
        *("", ".", "..", "%73ecret", "a%2Fb", DIGEST, f"sha256%3a{HEX}", "2f0c-9f", ".well-known", "tunnelmgr", "a;b"),
    ]
)
_PAIRS = st.sampled_from(
    [
        *(
            "n=1",
            "last=a",
            "last=a%2Fb",
            "state=open",
            "ns=docker.io",
            "tag=v1",
            "tag=v2",
            f"digest={DIGEST}",
            f"mount={DIGEST}",
            "from=base/os",
            "x=1",
        ),
        *("artifactType=a/b%2Bc", "n", "", "n=1;last=b", "from=%2e%2e"),
    ]
)
_TARGETS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=string.printable, max_size=80).map(lambda text: "/v2/" + text),
    st.builds(
        lambda words, pairs: "/" + "/".join(words) + ("?" + "&".join(pairs) if pairs else ""),
        st.lists(_WORDS, max_size=7).map(lambda words: ["v2", *words]),
        st.lists(_PAIRS, max_size=3),
    ),
)


@settings(deadline=None)  # a busy machine is not a failure
@given(_METHODS, _TARGETS)
def test_an_accepted_target_is_classified_the_same_after_encoding(method: str, target: str) -> None:
    """An accepted target is classified the same after encoding; any other raises MalformedRequestError."""
    try:
        request = classify(method, target)
    except MalformedRequestError:
        return

    assert classify(method, request.target()) == request
    assert request.target().isascii()
    assert not request.repository or is_repository_name(request.repository)
    if request.repository:
        assert request.path.startswith(f"/v2/{request.repository}/")
