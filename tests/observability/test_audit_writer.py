"""The audit log's thread: it survives unexpected errors, and is missed if it ends."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from tests.until import until
from tunnelmgr.observability import audit_writer
from tunnelmgr.observability.audit_chain import AuditEntry
from tunnelmgr.observability.audit_writer import AuditWriter, Waiting


class FailingFile:
    """A file that raises errors, one at each attempt, and then keeps what is written."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.codes: list[str] = []

    def append(self, entries: Sequence[AuditEntry]) -> int:
        """Raise the next error, or write all entries."""
        if self._errors:
            raise self._errors.pop(0)
        self.codes += [entry["code"] for entry in entries]
        return len(entries)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon."""
    monkeypatch.setattr(audit_writer, "RETRY_INTERVAL", 0.01)


@contextmanager
def writing(
    file: FailingFile, tried: Callable[[], None], written: Callable[[list[Waiting]], None] = lambda _: None
) -> Iterator[AuditWriter]:
    """Run a writer."""
    writer = AuditWriter("audit.jsonl", file, written)  # type: ignore[arg-type]
    writer.start(tried)
    yield writer
    writer.close(5)


async def test_an_unexpected_error_is_logged_once_and_the_entries_are_written_later() -> None:
    """The log has one traceback for an error that repeats; the error is reported until the entries are written."""
    file, errors = FailingFile(ValueError("broken"), ValueError("broken")), []

    with capture_logs() as logged, writing(file, lambda: errors.append(writer.error)) as writer:
        writer.put((None, {"code": "one"}))
        await until(lambda: file.codes)
        await until(lambda: len(errors) == 3)

    assert errors == ["audit.jsonl: unexpected ValueError: broken"] * 2 + [None]
    assert file.codes == ["one"]
    assert [(line["event"], line.get("exc_info")) for line in logged] == [
        ("audit writer crashed", True),
        ("audit write failed", None),
        ("audit write recovered", None),
    ]


async def test_an_error_after_the_write_does_not_repeat_the_entries() -> None:
    """If what was written cannot be reported, the thread continues, and writes no entry twice."""
    file, failures = FailingFile(), [RuntimeError("no loop")]

    def written(_: list[Waiting]) -> None:
        if failures:
            raise failures.pop()

    with capture_logs(), writing(file, lambda: None, written) as writer:
        writer.put((None, {"code": "one"}))
        await until(lambda: writer.error)
        writer.put((None, {"code": "two"}))
        await until(lambda: writer.error is None)

    assert file.codes == ["one", "two"]


async def test_a_thread_that_has_ended_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread ends without a stop, nothing is written any longer, and the audit log is not healthy."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with writing(FailingFile(SystemExit()), lambda: None) as writer:
        assert writer.error is None
        writer.put((None, {"code": "one"}))
        await until(lambda: writer.error)
        error = writer.error

    assert error == "audit.jsonl: the thread that writes it has ended; restart tunnelmgr"
