"""The log's lines for systemd's journal: each has its priority, in both formats."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tunnelmgr.cli.log_format import LogFormat, LogLevel, configure

Lines = Callable[[LogFormat], list[str]]


def log_something() -> None:
    """Log one event of each kind."""
    log = structlog.get_logger("test")
    log.info("tunnel opened", agent="cloud:a")
    log.warning("source failed")
    log.error("state write failed")
    logging.getLogger("library").warning("a library's\nwarning")
    try:
        int("broken")
    except ValueError:
        log.exception("reload failed")


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Return what is written to stderr, which is connected to the journal."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    with (tmp_path / "journal").open("w+") as journal:
        known = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{known.st_dev}:{known.st_ino}")

        def written(form: LogFormat) -> list[str]:
            monkeypatch.setattr(sys, "stderr", journal)
            configure(form, LogLevel.INFO)
            log_something()
            journal.flush()
            return (tmp_path / "journal").read_text().splitlines()

        yield written
    root.handlers, root.level = before[0], before[1]
    structlog.configure(**before[2])


def test_each_line_of_json_begins_with_its_priority(lines: Lines) -> None:
    """`journalctl -p err` finds errors, also of libraries; what follows the priority is JSON."""
    written = lines(LogFormat.JSON)

    assert [line[:3] for line in written] == ["<6>", "<4>", "<3>", "<4>", "<3>"]
    assert [json.loads(line[3:])["event"] for line in written][:3] == [
        "tunnel opened",
        "source failed",
        "state write failed",
    ]


def test_each_line_of_a_text_begins_with_its_priority(lines: Lines) -> None:
    """A traceback has many lines, all of them errors."""
    written = lines(LogFormat.TEXT)

    assert all(line.startswith("<") for line in written)
    traceback = [line for line in written if line.startswith("<3>")]
    assert any("Traceback" in line for line in traceback)
    assert any("ValueError: invalid literal" in line for line in traceback)


def test_another_stream_has_no_priorities(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal or a file that is not the journal gets plain lines, even if a parent process has set the variable."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")

    assert all(line.startswith("{") for line in lines(LogFormat.JSON))


def test_without_systemd_there_are_no_priorities(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, every stream gets plain lines."""
    monkeypatch.delenv("JOURNAL_STREAM")

    assert all(line.startswith("{") for line in lines(LogFormat.JSON))


def test_the_error_of_a_command_has_its_priority(tmp_path: Path) -> None:
    """A command that a unit runs, such as the one of ExecReload=, reports its error with the priority of errors."""
    with (tmp_path / "journal").open("w") as stderr:
        known = os.fstat(stderr.fileno())
        variables = {**os.environ, "JOURNAL_STREAM": f"{known.st_dev}:{known.st_ino}"}
        words = [sys.executable, "-m", "tunnelmgr", "state", "export", "-c", "/nonexistent.toml"]
        done = subprocess.run(words, stderr=stderr, env=variables, check=False, timeout=30)

    assert done.returncode == 2
    assert (tmp_path / "journal").read_text().startswith("<3>error: /nonexistent.toml")
