"""Policies: what is granted, what is refused, and which rule the verdict shows."""

import itertools
import re
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.call_count import count_calls
from tunnelmgr.core.globs import GlobSet
from tunnelmgr.core.oci import RegistryAction, classify
from tunnelmgr.core.policy import GroupPolicy, decide, judge, may_list, may_mount, protected_tags

DIGEST = "sha256:" + "a" * 64


def test_a_group_without_grants_pulls_everything_and_pushes_nothing() -> None:
    """By default, a group may pull everything, and push and delete nothing."""
    policy = GroupPolicy.build("ci")

    assert judge(RegistryAction.PULL, "team/app", policy).allowed
    assert not judge(RegistryAction.PUSH, "team/app", policy).allowed
    assert not judge(RegistryAction.DELETE, "team/app", policy).allowed


def test_a_refusal_shows_the_group_the_action_and_the_rule() -> None:
    """A refusal shows the group, the action, the repository, the rule, and whom to ask."""
    verdict = decide(classify("PUT", "/v2/team/app/manifests/v1"), GroupPolicy.build("ci"))

    assert verdict.reason == (
        "tunnelmgr: group ci may not push team/app: no rule grants it (default); ask the registry's administrator"
    )
    assert verdict.rule == "default"


def test_deny_wins_over_every_grant() -> None:
    """A denied repository cannot be pulled, pushed or deleted, even if a rule grants it."""
    policy = GroupPolicy.build("ci", pull=("**",), push=("**",), delete=("**",), deny=("team/secret-*",))

    verdicts = [
        judge(action, "team/secret-1", policy)
        for action in (RegistryAction.PULL, RegistryAction.PUSH, RegistryAction.DELETE)
    ]

    assert [verdict.rule for verdict in verdicts] == ["deny team/secret-*"] * 3
    assert not any(verdict.allowed for verdict in verdicts)


def test_push_implies_pull_but_not_delete() -> None:
    """A push grant includes pull of the same repository, but not delete."""
    policy = GroupPolicy.build("ci", pull=(), push=("team/*",))

    assert judge(RegistryAction.PULL, "team/app", policy).rule == "push team/*"
    assert not judge(RegistryAction.DELETE, "team/app", policy).allowed
    assert not judge(RegistryAction.PULL, "other/app", policy).allowed


def test_delete_needs_its_own_grant() -> None:
    """A delete grant allows delete, and neither pull nor push."""
    policy = GroupPolicy.build("ci", pull=(), delete=("team/**",))

    assert judge(RegistryAction.DELETE, "team/a/b", policy).rule == "delete team/**"
    assert not judge(RegistryAction.PULL, "team/a/b", policy).allowed


@pytest.mark.parametrize(
    "action", [RegistryAction.BASE, RegistryAction.CATALOG, RegistryAction.UNKNOWN, RegistryAction.WELL_KNOWN]
)
def test_other_actions_on_a_repository_are_refused(action: RegistryAction) -> None:
    """An action other than pull, push and delete on a repository is refused."""
    assert not judge(action, "team/app", GroupPolicy.build("ci")).allowed


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("team/app", ["team/app"], ["team/ap", "team/app/x", "xteam/app"]),
        ("team/*", ["team/app"], ["team", "team/a/b"]),
        ("team/**", ["team/app", "team/a/b"], ["team", "teams/app"]),
        ("**", ["a", "a/b/c"], []),
        ("*", ["a", "a-b"], ["a/b"]),
        ("**/app", ["app", "team/app", "a/b/app"], ["xapp", "app/x"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab", "a/b/c"]),
        ("team/app-*-x", ["team/app-1-x", "team/app--x"], ["team/app-x", "team/app-1/2-x"]),
        ("a.b", ["a.b"], ["axb"]),
        ("ab*ba", ["abba", "ab1ba"], ["aba"]),
        ("*/app", ["team/app"], ["app", "xapp", "a/b/app"]),
    ],
)
def test_globs_match_as_documented(pattern: str, matching: list[str], other: list[str]) -> None:
    """In a glob, `*` stays within a path component, and `**` crosses components."""
    globs = GlobSet([pattern])

    assert [name for name in (*matching, *other) if globs.find(name)] == matching


@pytest.mark.parametrize(
    "pattern", ["", "/team", "team/", "a//b", "Team/*", "team/a?", "team**", "a/***", "**/**", "ä"]
)
def test_an_invalid_pattern_is_in_the_error(pattern: str) -> None:
    """The error for an invalid repository pattern shows the pattern."""
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        GroupPolicy.build("ci", pull=("team/*", pattern))


@pytest.mark.parametrize("pattern", ["", "a/b", "**", "a b"])
def test_an_invalid_tag_pattern_is_in_the_error(pattern: str) -> None:
    """The error for an invalid tag pattern shows the pattern."""
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        GroupPolicy.build("ci", immutable_tags=(pattern,))


def test_the_order_of_rules_does_not_matter() -> None:
    """Every permutation of the rules gives the same verdict by the same rule."""
    patterns = ("team/*", "**", "team/app*", "*/app")

    verdicts = {
        judge(RegistryAction.PULL, "team/app", GroupPolicy.build("ci", pull=order))
        for order in itertools.permutations(patterns)
    }

    assert {verdict.rule for verdict in verdicts} == {"pull team/app*"}


def test_every_group_may_list_the_catalog_of_what_it_may_pull() -> None:
    """Every group may list the catalog, which shows repositories that it may pull and whose names are valid."""
    policy = GroupPolicy.build("ci", pull=("team/**",), push=("own/*",), deny=("team/secret",))
    names = ("team/app", "own/app", "team/secret", "other/app", "team/tags/list")

    assert decide(classify("GET", "/v2/_catalog"), GroupPolicy.build("ci", pull=())).allowed
    assert [name for name in names if may_list(name, policy)] == ["team/app", "own/app"]


def test_the_base_check_and_our_own_path_are_always_allowed() -> None:
    """The base check and the well-known path are allowed to a group that may do nothing else."""
    policy = GroupPolicy.build("ci", pull=())

    assert decide(classify("GET", "/v2/"), policy).allowed
    assert decide(classify("HEAD", "/.well-known/tunnelmgr"), policy).allowed


def test_an_unknown_endpoint_is_refused_to_every_group() -> None:
    """A request that is not an endpoint of the API is refused to every group."""
    policy = GroupPolicy.build("ci", push=("**",), delete=("**",))

    verdict = decide(classify("POST", "/v2/team/app/tags/list"), policy)

    assert not verdict.allowed
    assert verdict.reason == "tunnelmgr: POST /v2/team/app/tags/list is not an endpoint of the registry API"


def test_a_mount_needs_pull_of_its_source() -> None:
    """A mount needs pull of its source, and a mount without a source is never allowed."""
    policy = GroupPolicy.build("ci", pull=("base/*",), push=("team/*",))
    uploads = "/v2/team/app/blobs/uploads/"

    assert may_mount(classify("POST", f"{uploads}?mount={DIGEST}&from=base/os"), policy)
    assert not may_mount(classify("POST", f"{uploads}?mount={DIGEST}&from=secret/app"), policy)
    assert not may_mount(classify("POST", f"{uploads}?mount={DIGEST}"), policy)


def test_only_writing_a_protected_tag_is_protected() -> None:
    """Reading a protected tag, and writing other tags or a digest, is not protected."""
    policy = GroupPolicy.build("ci", push=("**",), immutable_tags=("release-*",))

    assert protected_tags(classify("PUT", "/v2/a/manifests/release-1"), policy) == {
        "release-1": "immutable_tags release-*"
    }
    assert protected_tags(classify("GET", "/v2/a/manifests/release-1"), policy) == {}
    assert protected_tags(classify("PUT", "/v2/a/manifests/latest"), policy) == {}
    assert protected_tags(classify("PUT", f"/v2/a/manifests/{DIGEST}"), policy) == {}


def test_a_decision_costs_little_with_a_thousand_grants() -> None:
    """A decision with a thousand grants and denies takes at most twice the calls of one with ten."""
    few, many = policy_of_size(10), policy_of_size(1000)
    request = classify("GET", "/v2/team-9/app-9/manifests/latest")

    calls_with_few = count_calls(partial(decide, request, few))
    calls_with_many = count_calls(partial(decide, request, many))

    assert decide(request, many).rule == "pull team-9/app-*"
    assert calls_with_many <= 2 * calls_with_few


def policy_of_size(size: int) -> GroupPolicy:
    """Return a policy with this many grants and denies."""
    return GroupPolicy.build(
        "ci",
        pull=[f"team-{number}/app-*" for number in range(size)],
        deny=[f"*/secret-{number}" for number in range(size)],
    )


_PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "*b", "a*b"]), min_size=1, max_size=4).filter(
    lambda parts: ("**", "**") not in itertools.pairwise(parts)
)


def _matches(pattern: list[str], name: list[str]) -> bool:
    """Match by the definition, without an index."""
    if not pattern or not name:
        return not pattern and not name
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        least = 0 if rest else 1
        return any(_matches(rest, name[taken:]) for taken in range(least, len(name) + 1))
    regex = head.replace("*", "[^/]*")
    return bool(re.fullmatch(regex, name[0])) and _matches(rest, name[1:])


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(_PATTERNS, max_size=6), st.lists(st.sampled_from(["a", "b", "ab", "aab", "x"]), min_size=1, max_size=5))
def test_the_index_finds_exactly_the_patterns_that_match(patterns: list[list[str]], name: list[str]) -> None:
    """The index of prefixes and suffixes finds a pattern if and only if one matches."""
    globs = GlobSet("/".join(parts) for parts in patterns)

    found = globs.find("/".join(name))

    matching = {"/".join(parts) for parts in patterns if _matches(parts, name)}
    assert (found in matching) if matching else (found is None)
