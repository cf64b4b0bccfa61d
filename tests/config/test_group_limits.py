"""`[group.limits]`: what a group may use, and which tables are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import load
from tunnelmgr.core.group_limits import UNLIMITED, GroupLimits
from tunnelmgr.core.policy import GroupPolicy

SSH = '[ssh]\nkey = "KEYFILE"\n'
GROUP = '[[group]]\nname = "ci"\n'


@pytest.fixture
def policy_of(write: Callable[[str], Path]) -> Callable[[str], GroupPolicy]:
    """Return a function that loads a group's tables, and returns its policy."""
    return lambda tables: load(write(SSH + GROUP + tables)).policies().of("ci", "registry")


def test_limits_are_part_of_the_policy(policy_of: Callable[[str], GroupPolicy]) -> None:
    """Each key is optional, and a key that is missing leaves no limit."""
    every = 'requests_per_second = 0.5\npull_rate = "2MiB"\npush_rate = "1KiB"\nconcurrent_pulls = 7\n'

    assert policy_of(f"[group.limits]\n{every}").limits == GroupLimits(0.5, 2 * 1024**2, 1024, 7)
    assert policy_of("[group.limits]\nconcurrent_pulls = 7\n").limits == GroupLimits(concurrent_pulls=7)
    assert policy_of("").limits is UNLIMITED


@pytest.mark.parametrize(
    ("tables", "limits"),
    [
        ("requests_per_second = 5\n", GroupLimits(requests_per_second=5.0)),
        ('bytes_per_second = "1MiB"\n', GroupLimits(pull_rate=1024**2, push_rate=1024**2)),
        (
            'requests_per_second = 5\nbytes_per_second = "1MiB"\n[group.limits]\npush_rate = "1KiB"\n',
            GroupLimits(5.0, 1024**2, 1024),
        ),
        ('requests_per_second = 0\nbytes_per_second = "0"\n', UNLIMITED),
        ("bytes_per_second = 0\n", UNLIMITED),
    ],
)
def test_the_short_forms_limit_a_group_too(
    policy_of: Callable[[str], GroupPolicy], tables: str, limits: GroupLimits
) -> None:
    """One rate counts for both directions, 0 means unlimited, and a key of the table replaces its short form."""
    assert policy_of(tables).limits == limits


@pytest.mark.parametrize("value", ['"x"', "5", "-1", "false", "[]"])
def test_a_short_form_that_makes_no_sense_is_refused(problems: Callable[[str], list[str]], value: str) -> None:
    """The problem says what a size looks like."""
    (found,) = problems(f"{GROUP}bytes_per_second = {value}\n")

    assert found.startswith('group[0].bytes_per_second: write a size such as "50GiB" or "500MiB"')


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("", "group[0].limits: this table has no limits; leave it out"),
        ("pull_rate = 5", 'group[0].limits.pull_rate: write a size such as "50GiB" or "500MiB"'),
        ("concurrent_pulls = 0", "group[0].limits.concurrent_pulls: must be greater than 0"),
        ("requests_per_second = -1", "group[0].limits.requests_per_second: must be greater than 0"),
        ("requests_per_second = inf", "group[0].limits.requests_per_second: "),
        ("pull_rat = 1", "group[0].limits.pull_rat: unknown key (did you mean pull_rate?)"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(problems: Callable[[str], list[str]], keys: str, problem: str) -> None:
    """The problem names the key and what to write."""
    (found,) = problems(f"{GROUP}[group.limits]\n{keys}\n")

    assert found.startswith(problem)
