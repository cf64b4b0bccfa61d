"""Pull-through caches, and the rules that a group has at one forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnelmgr.config import load
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.core.policy import PULL_THROUGH, GroupPolicy, judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORWARDS = """
[[forward]]
name = "registry"
listen = ["127.0.0.1:5000", "[::1]:5000"]
target = "127.0.0.1:5000"
[[forward]]
name = "mirror"
listen = ["127.0.0.1:5001"]
target = "127.0.0.1:5501"
upstream = "proxy"
[[forward]]
name = "database"
listen = ["127.0.0.1:5432"]
target = "127.0.0.1:5432"
protocol = "tcp"
"""
SSH = '[ssh]\nkey = "KEYFILE"\n'
GROUP = '[[group]]\nname = "ci"\n'
Allowed = tuple[bool, bool]


@pytest.fixture
def policy_at(write: Callable[[str], Path]) -> Callable[[str, str], GroupPolicy]:
    """Return a function that loads a group's rules, and returns its policy at a forward."""

    def policy(rules: str, forward: str) -> GroupPolicy:
        return load(write(FORWARDS + SSH + GROUP + rules)).policies().of("ci", forward)

    return policy


def pulls(policy: GroupPolicy, *repositories: str) -> list[bool]:
    """Return which repositories the policy lets its group pull."""
    return [judge(RegistryAction.PULL, repository, policy).allowed for repository in repositories]


@pytest.mark.parametrize(
    ("rules", "at_registry", "at_mirror"),
    [
        ("", [True, True], [True, True]),
        ('pull = ["team/*"]', [True, False], [True, False]),
        ('pull = ["team/*"]\n[[group.forward]]\nname = "mirror"\npull = ["library/**"]', [True, False], [False, True]),
        ('[[group.forward]]\nname = "mirror"\npull = ["library/**"]', [True, True], [False, True]),
        ('[[group.forward]]\nname = "mirror"\npull = []', [True, True], [False, False]),
        ('pull = ["team/*"]\n[[group.forward]]\nname = "mirror"\ndeny = ["team/*"]', [True, False], [False, False]),
        ('deny = ["team/*"]\n[[group.forward]]\nname = "mirror"\npull = ["**"]', [False, True], [False, True]),
        ('[[group.forward]]\nname = "registry"\npush = ["team/*"]', [True, False], [True, True]),
    ],
)
def test_grants_at_a_forward_replace_the_groups_and_restrictions_add_up(
    policy_at: Callable[[str, str], GroupPolicy], rules: str, at_registry: list[bool], at_mirror: list[bool]
) -> None:
    """A group's rules hold at every forward, except for those that have grants of their own; a deny always holds."""
    asked = ("team/app", "library/alpine")

    assert pulls(policy_at(rules, "registry"), *asked) == at_registry
    assert pulls(policy_at(rules, "mirror"), *asked) == at_mirror


def test_immutable_tags_add_up_too(policy_at: Callable[[str, str], GroupPolicy]) -> None:
    """A tag that the group may not change anywhere stays protected at a forward that protects others."""
    rules = 'push = ["**"]\nimmutable_tags = ["v*"]\n[[group.forward]]\nname = "registry"\nimmutable_tags = ["r*"]'
    tags = policy_at(rules, "registry").immutable_tags

    assert [tags.rule(tag) for tag in ("v1", "r1", "x")] == ["immutable_tags v*", "immutable_tags r*", None]


def test_a_forward_of_protocol_tcp_has_no_policy(policy_at: Callable[[str, str], GroupPolicy]) -> None:
    """No rule applies to raw bytes, so there is nothing that a grant could allow."""
    assert pulls(policy_at('pull = ["**"]', "database"), "team/app") == [False]


@pytest.mark.parametrize(
    ("mirror", "instead"),
    [("", "use localhost:5000 for that"), ('writer = "push.example"', "use push.example for that")],
)
def test_pushes_at_a_cache_are_referred_to_the_writer_or_to_the_first_registry(
    write: Callable[[str], Path], mirror: str, instead: str
) -> None:
    """Without `writer`, the refusal names the first forward that takes pushes as users write it."""
    text = FORWARDS.replace('upstream = "proxy"', f'upstream = "proxy"\n{mirror}')
    policy = load(write(text + SSH + GROUP)).policies().of("ci", "mirror")

    verdict = judge(RegistryAction.PUSH, "team/app", policy)

    assert verdict.rule == PULL_THROUGH
    assert verdict.reason.endswith(instead)


def test_a_registry_on_an_unusual_loopback_address_is_named_by_it(write: Callable[[str], Path]) -> None:
    """`localhost` does not lead to 127.0.0.2, so the address stays as it is."""
    text = FORWARDS.replace('["127.0.0.1:5000", "[::1]:5000"]', '["127.0.0.2:5000"]')
    policy = load(write(text + SSH + GROUP)).policies().of("ci", "mirror")

    assert "use 127.0.0.2:5000 for that" in judge(RegistryAction.PUSH, "team/app", policy).reason


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (
            'name = "miror"\npull = []',
            "name: unknown forward miror (did you mean mirror?); add a [[forward]] of this name",
        ),
        ('name = "x"\npull = []', "name: unknown forward x; add a [[forward]] of this name"),
        ('name = "database"\npull = []', 'name: forward database has protocol = "tcp", to which no rules apply'),
        (
            'name = "mirror"\npush = ["a"]',
            'push: forward mirror has upstream = "proxy": nobody can push or delete there',
        ),
        (
            'name = "mirror"\nimmutable_tags = ["a"]',
            'immutable_tags: forward mirror has upstream = "proxy": nobody can push or delete there',
        ),
        ('name = "mirror"\npul = ["a"]\npull = []', "pul: unknown key (did you mean pull?)"),
        ('name = "mirror"\npull = ["UPPER"]', "pull[0]: 'UPPER': a repository pattern has lower-case components"),
    ],
)
def test_a_table_that_could_not_apply_is_refused(
    problems: Callable[[str], list[str]], rules: str, problem: str
) -> None:
    """A misspelled forward, or rules that no request can meet, are found before they are relied on."""
    (found,) = problems(f"{FORWARDS}{GROUP}[[group.forward]]\n{rules}\n")

    assert found.startswith(f"group[0].forward[0].{problem}")


def test_a_table_without_rules_is_refused(problems: Callable[[str], list[str]]) -> None:
    """An empty table could be meant to grant nothing or to change nothing, so it has to say which."""
    assert problems(f'{FORWARDS}{GROUP}[[group.forward]]\nname = "mirror"\n') == [
        "group[0].forward[0]: this table has no rules; write pull = [] to grant nothing, or leave the table out"
    ]


def test_a_forward_has_one_table_in_a_group(problems: Callable[[str], list[str]]) -> None:
    """Two tables of one forward in one group are refused; two groups may each have one."""
    table = '[[group.forward]]\nname = "mirror"\npull = []\n'
    other = f'[[group]]\nname = "builders"\n{table}'

    assert problems(FORWARDS + GROUP + table + table + other) == [
        "group[0].forward[1].name: mirror is the name of group[0].forward[0] already"
    ]


def test_without_a_forward_in_the_file_its_name_is_registry(write: Callable[[str], Path]) -> None:
    """The forward that exists by default can be named like any other."""
    text = f'{SSH}{GROUP}[[group.forward]]\nname = "registry"\npull = ["team/*"]\n'

    assert pulls(load(write(text)).policies().of("ci", "registry"), "team/app", "x") == [True, False]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            'protocol = "tcp"\nupstream = "proxy"',
            'upstream: only a forward with protocol = "registry" leads to a registry',
        ),
        (
            'upstream = "proxy"\npush_target = "127.0.0.1:5002"',
            "push_target: what is pushed there cannot be pulled from a pull-through cache; leave it out",
        ),
        (
            'namespace = "docker.io"',
            'namespace: only a pull-through cache has images of another registry; add upstream = "proxy"',
        ),
        ('upstream = "cache"', "upstream: must be 'registry' or 'proxy', not 'cache'"),
        ('upstream = "proxy"\nnamespace = "https://docker.io"', "namespace: string should match pattern"),
    ],
)
def test_the_kind_of_registry_is_checked(problems: Callable[[str], list[str]], lines: str, problem: str) -> None:
    """Keys that contradict each other are refused, with what to do."""
    (found,) = problems(f'[[forward]]\nname = "r"\nlisten = ["127.0.0.1:5000"]\ntarget = "127.0.0.1:5000"\n{lines}')

    assert found.startswith(f"forward[0].{problem}")
