"""Policies of forwards: grants of their own, and pull-through caches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.oci import RegistryAction, classify
from tunnelmgr.core.policies import Policies
from tunnelmgr.core.policy import PULL_THROUGH, WRITES, GroupPolicy, PullThrough, decide, judge, may_list
from tunnelmgr.core.tunnel import Endpoint, Forward, pull_through_caches, registries

DIGEST = "sha256:" + "a" * 64
HUB = PullThrough("mirror", "localhost:5000", "docker.io")
WRITING = (
    ("POST", "/v2/library/alpine/blobs/uploads/"),
    ("POST", f"/v2/library/alpine/blobs/uploads/?mount={DIGEST}&from=library/debian"),
    ("PATCH", "/v2/library/alpine/blobs/uploads/1?state=x"),
    ("PUT", f"/v2/library/alpine/blobs/uploads/1?state=x&digest={DIGEST}"),
    ("GET", "/v2/library/alpine/blobs/uploads/1?state=x"),
    ("DELETE", "/v2/library/alpine/blobs/uploads/1?state=x"),
    ("PUT", "/v2/library/alpine/manifests/3.20"),
    ("DELETE", f"/v2/library/alpine/manifests/{DIGEST}"),
    ("DELETE", f"/v2/library/alpine/blobs/{DIGEST}"),
)


@pytest.mark.parametrize(("method", "target"), WRITING)
@pytest.mark.parametrize("grants", [{}, {"push": ("**",), "delete": ("**",)}])
def test_a_pull_through_cache_takes_no_push_and_no_delete(
    method: str, target: str, grants: dict[str, tuple[str, ...]]
) -> None:
    """Every push, upload and delete is refused with where to push instead, whether the group has grants or not."""
    verdict = decide(classify(method, target), GroupPolicy.build("ci", **grants, pull_through=HUB))

    action = "delete" if method == "DELETE" and "uploads" not in target else "push"
    assert (verdict.allowed, verdict.rule) == (False, PULL_THROUGH)
    assert verdict.reason == (
        f"tunnelmgr: forward mirror leads to a pull-through cache, which takes no {action} of library/alpine; "
        "use localhost:5000 for that"
    )


def test_a_cache_beside_no_other_registry_refers_to_its_origin() -> None:
    """If no forward takes pushes, the refusal says that they belong to the registry that is cached."""
    policy = GroupPolicy.build("ci", push=("**",), pull_through=PullThrough("mirror"))

    verdict = judge(RegistryAction.PUSH, "library/alpine", policy)

    assert verdict.reason.endswith("; use the registry that it is a cache of for that")


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("", True),
        ("?ns=docker.io", True),
        ("?ns=Docker.IO", True),
        ("?ns=quay.io", False),
        ("?ns=docker.io:443", False),
    ],
)
def test_a_cache_has_no_images_of_another_registry(query: str, allowed: bool) -> None:
    """A client that expects `quay.io/team/app` does not get `docker.io/team/app`, which may be a stranger's image."""
    request = classify("GET", f"/v2/team/app/manifests/1{query}")

    verdict = decide(request, GroupPolicy.build("ci", pull_through=HUB))

    assert verdict.allowed is allowed
    assert verdict.rule == ("pull **" if allowed else "namespace docker.io")


def test_the_refusal_of_another_registrys_image_names_both() -> None:
    """The reason names the registry that the client expects and the one that the forward has."""
    request = classify("GET", "/v2/team/app/manifests/1?ns=quay.io")

    verdict = decide(request, GroupPolicy.build("ci", pull_through=HUB))

    assert verdict.reason == (
        "tunnelmgr: forward mirror has images of docker.io, not quay.io/team/app; "
        "configure it as a mirror of docker.io only"
    )


def test_the_reason_names_a_forward_at_which_the_group_has_own_grants() -> None:
    """A user sees that another forward may have what this one lacks; a denied name is denied everywhere."""
    policy = GroupPolicy.build("ci", pull=("library/*",), deny=("library/bad",), forward="mirror")

    refused = judge(RegistryAction.PULL, "team/app", policy)
    denied = judge(RegistryAction.PULL, "library/bad", policy)

    assert "group ci may not pull team/app: no rule grants it at forward mirror (default)" in refused.reason
    assert "forbidden by the rule deny library/bad" in denied.reason


def test_a_group_or_a_forward_that_is_not_configured_may_do_nothing() -> None:
    """A group that left the configuration, or a forward that did, gets no rights from others."""
    policies = Policies({("ci", "registry"): GroupPolicy.build("ci", push=("**",))})

    allowed = [
        judge(RegistryAction.PULL, "team/app", policies.of(group, forward)).allowed
        for group, forward in (("ci", "registry"), ("ci", "mirror"), ("other", "registry"), ("", ""))
    ]

    assert allowed == [True, False, False, False]
    assert policies.groups == {"ci"}


_NAMES = st.sampled_from(["a", "b/c", "library/alpine", "secret/x"])
_GLOBS = st.lists(st.sampled_from(["**", "a", "b/*", "library/**", "secret/**"]), max_size=3)
_NAMESPACES = st.sampled_from(["", "docker.io", "quay.io", "localhost:5000"])
_REQUESTS = st.builds(
    lambda method, name, reference, namespace: (
        f"/v2/{name}/manifests/{reference}" + (f"?ns={namespace}" if namespace and method in {"GET", "HEAD"} else ""),
        method,
    ),
    st.sampled_from(["GET", "HEAD", "PUT", "DELETE"]),
    _NAMES,
    st.sampled_from(["1", DIGEST]),
    _NAMESPACES,
)


@settings(deadline=None)  # a busy machine is not a failure
@given(_REQUESTS, _GLOBS, _GLOBS, _GLOBS, _NAMESPACES)
def test_a_cache_allows_only_pulls_that_the_same_rules_allow_elsewhere(
    asked: tuple[str, str], pull: list[str], push: list[str], deny: list[str], namespace: str
) -> None:
    """A cache never allows more than an ordinary registry: only what it allows, if that is a pull of its namespace."""
    target, method = asked
    request = classify(method, target)
    rules = {"pull": pull, "push": push, "delete": push, "deny": deny}
    cache = GroupPolicy.build("ci", **rules, pull_through=PullThrough("mirror", "", namespace))

    elsewhere = decide(request, GroupPolicy.build("ci", **rules))
    here = decide(request, cache)

    fits = namespace == "" or request.namespace in {"", namespace}
    assert here.allowed == (elsewhere.allowed and fits and request.action not in WRITES)
    assert may_list(request.repository, cache) == judge(RegistryAction.PULL, request.repository, cache).allowed


@settings(deadline=None)
@given(_REQUESTS, _GLOBS, _GLOBS, _GLOBS)
def test_the_parameter_ns_changes_no_verdict_at_an_ordinary_registry(
    asked: tuple[str, str], pull: list[str], push: list[str], deny: list[str]
) -> None:
    """By `ns`, a client neither gets a right nor loses one: the path alone says which repository it is."""
    target, method = asked
    policy = GroupPolicy.build("ci", pull=pull, push=push, deny=deny)

    assert decide(classify(method, target), policy) == decide(classify(method, target.partition("?")[0]), policy)


def test_caches_are_not_among_the_registries_that_store_images() -> None:
    """Each target counts once, as what its forward says; a raw forward leads to no registry."""
    one, two = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 5501)
    forwards = (
        Forward("registry", (), one),
        Forward("again", (), one),
        Forward("mirror", (), two, upstream="proxy"),
        Forward("database", (), Endpoint("127.0.0.1", 5432), "tcp"),
    )

    assert (registries(forwards), pull_through_caches(forwards)) == ((one,), (two,))
