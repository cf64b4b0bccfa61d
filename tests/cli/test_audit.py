"""`audit`: the audit log, for people and for scripts."""

import asyncio
import json
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tunnelmgr.config import load
from tunnelmgr.daemon.audit_setup import make_audit


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


@pytest.fixture
def chained(config: Path, tmp_path: Path) -> Path:
    """Configure a log with a key, and write it in two processes with a rotation between them; return its file."""
    file, key = tmp_path / "audit.jsonl", tmp_path / "audit_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config.write_text(
        config.read_text().replace("[controller]", f'[controller]\naudit = "{file}"\naudit_key = "{key}"')
    )

    async def write() -> None:
        log = make_audit(load(config), time.time, lambda: False)
        await log.start()
        for number in range(3):
            log.log.note("entry", number=number)
        log.close()

    asyncio.run(write())
    file.rename(tmp_path / "audit.jsonl.1")
    asyncio.run(write())
    return file


def test_an_unchanged_log_is_verified(run: Run, config: Path, chained: Path) -> None:
    """Without arguments the configured files are verified with the public key beside the private one."""
    shown = run("audit", "verify", "-c", config)

    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[:2] == [
        f"{chained}.1: 5 entries of registry-1, sequence 1 to 5",
        f"{chained}: 5 entries of registry-1, sequence 6 to 10",
    ]
    assert lines[2].startswith("note: sealed to the end, sequence 10, ")
    assert lines[3] == "ok: nothing was changed, removed, moved, inserted or cut off"


def test_the_place_of_a_fault_is_named(run: Run, config: Path, chained: Path) -> None:
    """A fault has file, line, kind and number, and the command exits with 1."""
    lines = chained.read_bytes().splitlines(keepends=True)
    chained.write_bytes(b"".join([lines[0], *lines[2:]]))

    shown = run("audit", "-c", config, "verify")

    assert shown.exit_code == 1
    assert shown.stderr == f"error: {chained}:2: missing: lacks sequence 7 before this line (sequence 8)\n"


def test_faults_are_json_for_scripts(run: Run, chained: Path) -> None:
    """`--json` has the files and the faults; files that are named need no configuration."""
    shown = run("audit", "verify", "--json", "--through", 11, chained)

    facts = json.loads(shown.stdout)
    assert (shown.exit_code, facts["ok"]) == (1, False)
    (file,) = facts["files"]
    assert (file["after"], file["last"], file["entries"], file["sealed"]) == (5, 10, 5, None)
    detail = "the log ends with sequence 10, and lacks sequence 11"
    assert facts["faults"] == [{"file": str(chained), "line": None, "sequence": 10, "kind": "cut", "detail": detail}]


def test_a_file_that_cannot_be_looked_up_is_a_fault(run: Run, chained: Path) -> None:
    """A file whose path fails, here because its name is too long, is a fault and not a traceback."""
    file = chained.with_name("x" * 300)

    shown = run("audit", "verify", file)

    assert shown.exit_code == 1
    assert shown.stderr == f"error: {file}: unreadable: File name too long\n"


def test_a_public_key_that_cannot_be_looked_up_is_named(run: Run, config: Path, chained: Path) -> None:
    """The error says which public key is needed, and a copy of it that is given instead is used."""
    copy = chained.with_name("audit_ed25519.pub")
    key = chained.with_name("audit_ed25519").rename(chained.with_name("x" * 252))
    config.write_text(config.read_text().replace(str(chained.with_name("audit_ed25519")), str(key)))

    shown, with_copy = run("audit", "verify", "-c", config), run("audit", "verify", "-c", config, "--key", copy)

    assert (shown.exit_code, shown.stderr) == (
        1,
        f"error: cannot read {key}.pub: File name too long; give a copy of it with --key\n",
    )
    assert (with_copy.exit_code, with_copy.stderr) == (0, "")


def test_a_key_that_cannot_be_used_is_a_usage_error(run: Run, chained: Path) -> None:
    """The private key is not taken for the public one."""
    shown = run("audit", "verify", "--key", chained.with_name("audit_ed25519"), chained)

    assert shown.exit_code == 2
    assert "is a private key; give the public one" in shown.stderr


def test_without_a_log_there_is_nothing_to_verify(run: Run, config: Path, audited: Path) -> None:
    """A configuration without a log, a log that does not exist, and one without a chain are errors."""
    assert "has no chain" in run("audit", "verify", "-c", audited).stderr
    file = audited.with_name("audit.jsonl")
    file.unlink()
    missing = run("audit", "verify", "-c", audited)
    config.write_text(config.read_text().replace("audit =", "#"))

    assert (missing.exit_code, missing.stderr) == (1, f"error: {file} does not exist\n")
    assert run("audit", "verify", "-c", config).exit_code == 2
