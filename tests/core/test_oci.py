"""Classification: every endpoint of the API has one reading, and nothing else passes."""

import re
import string

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
    """end-1 to end-14 of the OCI distribution spec, the catalog and our own path."""
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
def test_a_path_that_two_readers_could_take_differently_is_refused(target: str) -> None:
    """Trap 21: the real registry decodes and cleans what policy would have judged raw."""
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
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    """Trap 22: the registry's routes match greedily, so the API's own words may not be part of a name."""
    with pytest.raises(MalformedRequestError):
        classify("GET", f"/v2/{name}/tags/list")


@pytest.mark.parametrize("name", ["a", "a/b/c", "a.b", "a_b", "a__b", "a---b", "a" * 255, "list", "v2"])
def test_a_name_of_the_grammar_is_accepted(name: str) -> None:
    """Up to 255 characters."""
    assert classify("GET", f"/v2/{name}/tags/list").repository == name


def test_an_empty_name_is_refused() -> None:
    """There is a repository in every such path."""
    with pytest.raises(MalformedRequestError):
        classify("GET", "/v2/tags/list")


@pytest.mark.parametrize("colon", [":", "%3A", "%3a"])
def test_a_digests_colon_may_be_encoded_and_is_written_plainly(colon: str) -> None:
    """The one exception to a path without escapes."""
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
def test_a_reference_that_is_none_is_refused(path: str) -> None:
    """Tags and digests have exact grammars."""
    with pytest.raises(MalformedRequestError):
        classify("GET", f"/v2/team/app/{path}")


@pytest.mark.parametrize(
    ("method", "target", "told"),
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
def test_a_query_outside_its_endpoints_list_is_refused(method: str, target: str, told: str) -> None:
    """Each parameter once, each with a value of its grammar; the error names the parameter that is wrong."""
    with pytest.raises(MalformedRequestError, match=re.escape(told)) as refused:
        classify(method, target)

    assert refused.value.oci_code == "UNSUPPORTED"


def test_a_query_has_a_bounded_number_of_parameters() -> None:
    """Each tag may cost a question to the registry."""
    path, tags = f"/v2/a/manifests/{DIGEST}", [f"tag=v{number}" for number in range(MAX_PARAMETERS + 1)]

    assert len(classify("PUT", f"{path}?{'&'.join(tags[1:])}").tags) == MAX_PARAMETERS
    with pytest.raises(MalformedRequestError, match="at most 32 parameters"):
        classify("PUT", f"{path}?{'&'.join(tags)}")


def test_errors_have_the_codes_of_the_oci_spec() -> None:
    """A bad path is NAME_INVALID, a bad digest in the query DIGEST_INVALID."""
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
def test_the_registry_behind_a_mirror_is_accepted_and_not_passed_on(target: str, ns: str) -> None:
    """A mirror gets `ns` from containerd and BuildKit; the registry behind the gate is asked by its own names."""
    assert classify("GET", f"{target}?ns={ns}") == classify("GET", target)


def test_a_push_by_digest_may_name_tags() -> None:
    """They go on to the registry, and each counts as a tag that is written."""
    target = f"/v2/a/manifests/{DIGEST}?tag=v1&tag=v1.0"

    request = classify("PUT", target)

    assert (request.tags, request.target(), request.reference) == (("v1", "v1.0"), target, DIGEST)


def test_an_upload_goes_on_at_the_place_that_the_registry_gave_it() -> None:
    """Its path and query stand for the agent's; only what the endpoint knows follows."""
    request = classify("PUT", f"{UPLOAD}?state=open&digest=sha256%3A{HEX}")

    placed = at_location(request, "/v2/team/app/blobs/uploads/7", "_state=Ab%3D%3D")

    assert placed.target() == f"/v2/team/app/blobs/uploads/7?_state=Ab%3D%3D&digest=sha256%3A{HEX}"
    assert at_location(request, "/x", "").target() == f"/x?digest=sha256%3A{HEX}"
    assert at_location(classify("GET", UPLOAD), "/x", "y").target() == "/x?y"


def test_a_mount_names_its_source() -> None:
    """Policy has to judge it too (end-11)."""
    request = classify("POST", f"/v2/a/blobs/uploads/?mount={DIGEST}&from=base%2Fos")

    assert request.mount_from == "base/os"


def test_a_source_without_a_mount_is_none() -> None:
    """`from` alone asks for nothing."""
    request = classify("POST", "/v2/a/blobs/uploads/?from=base/os")

    assert request.mount_from == ""
    assert without_mount(request).query == ()


def test_without_mount_leaves_an_ordinary_upload() -> None:
    """Both parameters go, nothing else does."""
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
def test_what_is_plain_but_no_endpoint_is_unknown(method: str, target: str) -> None:
    """It is well-formed, so it gets a verdict, and the verdict is no."""
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
def test_a_request_says_which_body_it_may_have(method: str, target: str, body: BodyKind) -> None:
    """The gate decides by it what Content-Type the registry sees."""
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


@settings(deadline=None)  # a busy machine is no failure
@given(_METHODS, _TARGETS)
def test_an_accepted_target_reads_the_same_when_it_is_written_anew(method: str, target: str) -> None:
    """What the registry gets means exactly what policy judged; anything else raises MalformedRequestError."""
    try:
        request = classify(method, target)
    except MalformedRequestError:
        return

    assert classify(method, request.target()) == request
    assert request.target().isascii()
    assert not request.repository or is_repository_name(request.repository)
    if request.repository:
        assert request.path.startswith(f"/v2/{request.repository}/")
