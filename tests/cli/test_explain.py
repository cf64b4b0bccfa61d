"""`explain-policy`: what an agent may do, for people and for scripts."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("asked", "rule", "line"),
    [
        ("pull any/thing", "pull **", "static:builder-1 may pull any/thing: pull ** (group ci, forward registry)"),
        (
            "push team/app",
            "push team/*",
            "static:builder-1 may push team/app: push team/* (group ci, forward registry)",
        ),
        ("push x/y", "default", "static:builder-1 may not push x/y: no rule allows it (group ci, forward registry)"),
    ],
)
def test_the_rule_that_decides_is_named_and_the_exit_status_is_the_verdict(
    run: Run, socket: Path, asked: str, rule: str, line: str
) -> None:
    """A script reads the verdict from the exit status, and a person reads the reason."""
    for_people = run("explain-policy", "builder-1", *asked.split(), "--socket", socket)
    for_scripts = run("explain-policy", "builder-1", *asked.split(), "--socket", socket, "--json")

    assert for_people.exit_code == for_scripts.exit_code == (1 if "may not" in line else 0)
    assert for_people.stdout.strip() == line
    assert json.loads(for_scripts.stdout)["rule"] == rule


def test_a_policy_is_shown_for_the_named_forward(run: Run, socket: Path) -> None:
    """The forward is asked for and shown, because a group may have grants of its own there."""
    asked = ("explain-policy", "builder-1", "pull", "any/thing", "--forward", "mirror", "--socket", socket)

    assert run(*asked).stdout.strip() == "static:builder-1 may pull any/thing: pull ** (group ci, forward mirror)"
    assert json.loads(run(*asked, "--json").stdout)["forward"] == "mirror"


def test_an_unknown_action_is_a_usage_error(run: Run, socket: Path) -> None:
    """`explain-policy` knows only pull, push and delete."""
    assert run("explain-policy", "builder-1", "fetch", "team/app", "--socket", socket).exit_code == 2


def test_an_unknown_agent_is_named(run: Run, socket: Path) -> None:
    """The error for an agent that the daemon does not know repeats what was asked for."""
    answer = run("explain-policy", "nobody", "pull", "team/app", "--socket", socket)

    assert answer.exit_code == 1
    assert "nobody" in answer.stderr
