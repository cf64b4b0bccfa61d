"""`explain-policy` and `audit`: what an agent may do, and what was done, for people and for scripts."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def stamp(ago: float = 0.0) -> str:
    """Return a time in the log's form."""
    return (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def audited(config: Path, tmp_path: Path) -> Path:
    """Configure an audit file with a few entries, one of them spoilt."""
    file = tmp_path / "audit.jsonl"
    config.write_text(config.read_text().replace("[controller]", f'[controller]\naudit = "{file}"'))
    lines = [
        {"time": stamp(7200), "sequence": 1, "code": "tunnel-probed", "agent": "ec2:i-1", "detail": "up"},
        {
            "time": stamp(60),
            "sequence": 2,
            "code": "request-allowed",
            "agent": "ec2:i-1",
            "action": "pull",
            "repository": "team/app",
            "verdict": "allow",
        },
        {
            "time": stamp(5),
            "sequence": 3,
            "code": "request-refused",
            "agent": "ec2:i-2",
            "action": "push",
            "repository": "team/app",
            "verdict": "refuse",
        },
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "spoilt\n")
    return config


@pytest.mark.parametrize(
    ("asked_for", "status", "rule"),
    [(("pull", "any/thing"), 0, "pull **"), (("push", "team/app"), 0, "push team/*"), (("push", "x/y"), 1, "default")],
)
def test_the_rule_that_decides_is_named_and_the_exit_status_tells(
    run: Run, socket: Path, asked_for: tuple[str, str], status: int, rule: str
) -> None:
    """A script sees by the status whether it may, a person sees why."""
    told = run("explain-policy", "builder-1", *asked_for, "--socket", socket)
    asked = run("explain-policy", "builder-1", *asked_for, "--socket", socket, "--json")

    assert (told.exit_code, asked.exit_code) == (status, status)
    assert rule in told.stdout
    assert json.loads(asked.stdout)["rule"] == rule


def test_what_is_no_action_is_a_usage_error(run: Run, socket: Path) -> None:
    """Only pull, push and delete are asked about."""
    assert run("explain-policy", "builder-1", "fetch", "team/app", "--socket", socket).exit_code == 2


def test_an_agent_that_nobody_knows_is_named(run: Run, socket: Path) -> None:
    """The question is answered for agents that are known."""
    answer = run("explain-policy", "nobody", "pull", "team/app", "--socket", socket)

    assert answer.exit_code == 1
    assert "nobody" in answer.stderr


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], [1, 2, 3]),
        (["--refused"], [3]),
        (["--agent", "i-1"], [1, 2]),
        (["--agent", "ec2:i-2"], [3]),
        (["--repository", "team/app"], [2, 3]),
        (["--since", "1h"], [2, 3]),
        (["--since", "2000-01-01"], [1, 2, 3]),
    ],
)
def test_entries_are_filtered(run: Run, audited: Path, options: list[str], numbers: list[int]) -> None:
    """Each filter leaves what it names; a spoilt line spoils nothing else."""
    shown = run("audit", "-c", audited, "--json", *options)

    assert shown.exit_code == 0
    assert [json.loads(line)["sequence"] for line in shown.stdout.splitlines()] == numbers


def test_people_see_one_line_an_entry(run: Run, audited: Path) -> None:
    """Time, code, agent and what it was about stand in a line."""
    shown = run("audit", "-c", audited, "--refused")

    (line,) = shown.stdout.splitlines()
    assert line.split()[2:] == ["request-refused", "ec2:i-2", "push", "team/app"]


def test_a_time_that_is_none_is_a_usage_error(run: Run, audited: Path) -> None:
    """What cannot be read is named."""
    shown = run("audit", "-c", audited, "--since", "yesterday")

    assert shown.exit_code == 2
    assert "yesterday" in shown.stderr


def test_without_an_audit_file_the_configuration_is_named(run: Run, config: Path) -> None:
    """The audit goes to the log then, and the command says so."""
    shown = run("audit", "-c", config)

    assert shown.exit_code == 2
    assert "controller.audit" in shown.stderr


def test_a_file_that_is_not_there_is_named(run: Run, config: Path, tmp_path: Path) -> None:
    """Before the first start there is nothing to show, and that is said."""
    config.write_text(config.read_text().replace("[controller]", f'[controller]\naudit = "{tmp_path}/none.jsonl"'))

    shown = run("audit", "-c", config)

    assert shown.exit_code == 1
    assert "none.jsonl" in shown.stderr
