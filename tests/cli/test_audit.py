"""`audit`: the audit log, for people and for scripts."""

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
    """Configure an audit file with a few entries and one damaged line."""
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
            "forward": "mirror",
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
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "damaged\n")
    return config


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], [1, 2, 3]),
        (["--refused"], [3]),
        (["--agent", "i-1"], [1, 2]),
        (["--agent", "ec2:i-2"], [3]),
        (["--repository", "team/app"], [2, 3]),
        (["--forward", "mirror"], [2]),
        (["--repository", "team/app", "--forward", "registry"], []),
        (["--since", "1h"], [2, 3]),
        (["--since", "2000-01-01"], [1, 2, 3]),
    ],
)
def test_entries_are_filtered(run: Run, audited: Path, options: list[str], numbers: list[int]) -> None:
    """Each filter keeps only the entries that it names, and a damaged line is skipped."""
    shown = run("audit", "-c", audited, "--json", *options)

    assert shown.exit_code == 0
    assert [json.loads(line)["sequence"] for line in shown.stdout.splitlines()] == numbers


def test_people_see_one_line_for_each_entry(run: Run, audited: Path) -> None:
    """The line of an entry has its time, its code, the agent and the request."""
    shown = run("audit", "-c", audited, "--refused")

    (line,) = shown.stdout.splitlines()
    assert line.split()[2:] == ["request-refused", "ec2:i-2", "push", "team/app"]


def test_an_invalid_time_is_a_usage_error(run: Run, audited: Path) -> None:
    """The error repeats the time that cannot be read."""
    shown = run("audit", "-c", audited, "--since", "yesterday")

    assert shown.exit_code == 2
    assert "yesterday" in shown.stderr


@pytest.mark.parametrize("since", ["99999999999d", "0001-01-01T00:00+14:00"])
def test_a_time_beyond_the_calendar_is_a_usage_error(run: Run, audited: Path, since: str) -> None:
    """A duration that leads before the year 1 is refused without a traceback."""
    assert run("audit", "-c", audited, "--since", since).exit_code == 2


def test_without_an_audit_file_the_configuration_is_named(run: Run, config: Path) -> None:
    """If `controller.audit` is not set, `audit` names that key, because the entries are in the daemon's log."""
    shown = run("audit", "-c", config)

    assert shown.exit_code == 2
    assert "controller.audit" in shown.stderr


def test_a_missing_audit_file_is_named(run: Run, config: Path, tmp_path: Path) -> None:
    """Before the first start there is no audit file, and the error names it."""
    config.write_text(config.read_text().replace("[controller]", f'[controller]\naudit = "{tmp_path}/none.jsonl"'))

    shown = run("audit", "-c", config)

    assert shown.exit_code == 1
    assert "none.jsonl" in shown.stderr
