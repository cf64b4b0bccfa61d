"""Forwarding of the audit log to collectors: each entry arrives, despite outages, restarts and rotations."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lab.certificates import make_certificate
from tests.observability.collectors import HttpCollector, SyslogReceiver
from tests.observability.sealed_log import SealedLog
from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.config import AuditForwardConfig
from tunnelmgr.daemon.audit_setup import make_forward
from tunnelmgr.observability import audit_forward, audit_syslog, audit_tail
from tunnelmgr.observability.audit_forward import AuditForward
from tunnelmgr.observability.audit_log import AuditLog


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon, so that an outage in a test is short."""
    for name, value in {"POLL": 0.01, "IDLE": 0.02, "RETRY_MIN": 0.02, "RETRY_MAX": 0.1}.items():
        monkeypatch.setattr(audit_forward, name, value)
    monkeypatch.setattr(audit_tail, "GAP_TIMEOUT", 0.1)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[SyslogReceiver]:
    """Start a syslog receiver."""
    receiver = SyslogReceiver(tmp_path)
    receiver.start()
    yield receiver
    receiver.stop()
    assert receiver.errors == []


@pytest.fixture
async def log(sealed: SealedLog) -> AsyncIterator[AuditLog]:
    """Start an audit log with a key."""
    log = await sealed.start()
    yield log
    log.close()


@asynccontextmanager
async def forwarding(sealed: SealedLog, **settings: object) -> AsyncIterator[AuditForward]:
    """Forward a log until the end of the block, and then send what is left."""
    config = AuditForwardConfig.model_validate({"name": "siem", **settings})
    forward = make_forward(sealed.file, config)
    forward.start()
    await until(sealed.file.with_name(f"{sealed.file.name}.{config.name}.cursor").exists)
    try:
        yield forward
    finally:
        forward.stop()
        await until(lambda: not forward.is_running)


def written(sealed: SealedLog) -> list[bytes]:
    """Return the lines of all files, oldest first."""
    return [line for file in reversed(sealed.files()) for line in file.read_bytes().splitlines(keepends=True)]


def numbers(lines: list[bytes]) -> list[int]:
    """Return the numbers of entries."""
    return [json.loads(line)["sequence"] for line in lines]


async def test_an_endpoint_gets_each_line_as_it_is_in_the_file(sealed: SealedLog, log: AuditLog) -> None:
    """A collector gets the very lines, so that it can verify them; the last seal comes with the stop."""
    collector = HttpCollector()
    async with collector.serving():
        async with forwarding(sealed, url=collector.url) as forward:
            for number in range(2500):
                log.note("entry", number=number)
                if number % 200 == 0:
                    await sealed.written_all(log)
            await until(lambda: len(collector.lines) == 2501)
            log.close()
        health = forward.health(log.written)

    assert collector.lines == written(sealed)
    assert b"audit-sealed" in collector.lines[-1]
    assert (health.error, health.sequence, health.behind, health.dropped) == (None, 2502, 0, 0)


async def test_nothing_is_lost_while_the_endpoint_is_away(sealed: SealedLog, log: AuditLog) -> None:
    """What is written during an outage, over many rotations, some of them compressed, arrives afterwards in order."""
    collector, port = HttpCollector(), free_port()
    with capture_logs() as logged:
        async with forwarding(sealed, url=f"http://127.0.0.1:{port}/audit") as forward:
            for number in range(6):
                log.note("entry", number=number)
                await sealed.written_all(log)
                rotated = sealed.rotate()
                if number % 2:
                    await asyncio.to_thread(subprocess.run, ["gzip", rotated], check=True)
            await until(lambda: forward.health(0).error)
            async with collector.serving(port):
                await until(lambda: len(collector.lines) == 7)
                assert forward.health(log.written).error is None

    assert numbers(collector.lines) == list(range(1, 8))
    events = [line["event"] for line in logged if line["event"].startswith("audit forward")]
    assert events == ["audit forward failed", "audit forward recovered"]


async def test_a_failing_endpoint_gets_the_same_lines_again(sealed: SealedLog, log: AuditLog) -> None:
    """A status other than success confirms nothing, also a redirect; what was refused is sent again, in order."""
    statuses = iter([500, 503, 302, 400])
    collector = HttpCollector(lambda _: next(statuses, 200))
    async with collector.serving(), forwarding(sealed, url=collector.url):
        log.note("entry")
        await until(lambda: len(collector.lines) == 2)

    assert collector.statuses[:5] == [500, 503, 302, 400, 200]
    assert numbers(collector.lines) == [1, 2]


async def test_requests_shrink_until_the_endpoint_takes_them(sealed: SealedLog, log: AuditLog) -> None:
    """After 413 the same entries are sent in smaller requests."""
    collector = HttpCollector(lambda lines: 413 if len(lines) > 10 else 200)
    for number in range(99):
        log.note("entry", number=number)
    await sealed.written_all(log)
    async with collector.serving(), forwarding(sealed, url=collector.url):
        await until(lambda: len(collector.lines) == 100)

    assert numbers(collector.lines) == list(range(1, 101))
    assert collector.statuses.count(413) < 8


async def test_a_restart_continues_after_the_last_confirmed_entry(sealed: SealedLog, log: AuditLog) -> None:
    """A second process sends what the first one did not, and nothing that was confirmed."""
    collector = HttpCollector()
    async with collector.serving():
        async with forwarding(sealed, url=collector.url):
            await until(lambda: len(collector.lines) == 1)
        log.note("while away")
        await sealed.written("while away")
        sealed.rotate()
        log.note("afterwards")
        await sealed.written("afterwards")
        async with forwarding(sealed, url=collector.url):
            await until(lambda: len(collector.lines) == 3)

    assert numbers(collector.lines) == [1, 2, 3]


async def test_entries_that_rotation_removed_are_counted(sealed: SealedLog, log: AuditLog) -> None:
    """Files that are removed during an outage cost their entries, which are counted and logged; the rest arrives."""
    collector, port = HttpCollector(), free_port()
    with capture_logs() as logged:
        async with forwarding(sealed, url=f"http://127.0.0.1:{port}/audit") as forward:
            await until(lambda: forward.health(0).error)
            for number in range(5):
                log.note("entry", number=number)
                await sealed.written_all(log)
                sealed.rotate()
            for old in sealed.files()[1:]:
                old.unlink()
            async with collector.serving(port):
                await until(lambda: collector.lines)
            assert forward.health(log.written).dropped == 5

    assert numbers(collector.lines) == [6]
    assert [line["count"] for line in logged if line["event"] == "audit entries not forwarded"] == [5]


async def test_the_token_is_sent_and_read_again(sealed: SealedLog, log: AuditLog, tmp_path: Path) -> None:
    """A new token is used without a restart, and a token file that others can read is refused."""
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("first\n")
    collector = HttpCollector()
    async with collector.serving(), forwarding(sealed, url=collector.url, token_file=str(token)) as forward:
        await until(lambda: len(collector.lines) == 1)
        token.write_text("second\n")
        log.note("entry")
        await until(lambda: len(collector.lines) == 2)
        token.chmod(0o644)
        log.note("entry")
        await until(lambda: "can be read by others" in (forward.health(0).error or ""))
        token.chmod(0o600)
        await until(lambda: len(collector.lines) == 3)

    assert [sent["Authorization"] for sent in collector.headers] == ["Bearer first", "Bearer second", "Bearer second"]


async def test_an_endpoint_is_verified(sealed: SealedLog, log: AuditLog, tmp_path: Path) -> None:
    """Nothing is sent to an endpoint whose certificate is of another authority."""
    for name in ("right", "wrong"):
        make_certificate("127.0.0.1", tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "right.pem", tmp_path / "right.key")
    collector = HttpCollector()
    async with collector.serving(context=context):
        async with forwarding(sealed, url=collector.url, ca_file=str(tmp_path / "wrong.pem")) as forward:
            await until(lambda: "certificate verify failed" in (forward.health(0).error or ""))
        assert collector.statuses == []
        async with forwarding(sealed, url=collector.url, ca_file=str(tmp_path / "right.pem")):
            await until(lambda: len(collector.lines) == 1)
    assert log.healthy


async def test_a_receiver_gets_strict_syslog_messages(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver
) -> None:
    """Each message is one of RFC 5424 in a frame of RFC 5425, with the line of the file, its code and its number."""
    async with forwarding(sealed, url=receiver.url, ca_file=str(receiver.ca)):
        log.note("request-refused", detail='bracket ] quote " line \n é')
        log.note("request-allowed")
        await until(lambda: len(receiver.messages) == 3)
        log.close()

    assert [message.line + b"\n" for message in receiver.messages] == written(sealed)
    assert [(message.code, message.priority) for message in receiver.messages] == [
        ("audit-started", 110),
        ("request-refused", 109),
        ("request-allowed", 110),
        ("audit-sealed", 110),
    ]
    assert receiver.messages[1].data.startswith('[meta sequenceId="2"][origin software="tunnelmgr" swVersion="')


async def test_nothing_is_lost_while_the_receiver_restarts(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver
) -> None:
    """Sessions that are reset confirm nothing: their messages arrive again, and in the end each one is there."""
    receiver.ends_after = 7
    async with forwarding(sealed, url=receiver.url, ca_file=str(receiver.ca)):
        for number in range(60):
            log.note("entry", number=number)
            if number % 20 == 10:
                await sealed.written_all(log)
                receiver.stop()
                sealed.rotate()
                receiver.start()
        await until(lambda: receiver.sessions > 4)
        receiver.ends_after = None
        await until(lambda: b'"number":59,' in receiver.messages[-1].line)

    arrived = list(dict.fromkeys(message.line + b"\n" for message in receiver.messages))
    assert arrived == written(sealed)
    assert len(receiver.messages) > len(arrived)


@pytest.mark.parametrize("resets", [True, False])
async def test_a_session_that_is_not_confirmed_is_sent_again(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver, *, resets: bool
) -> None:
    """A receiver that ends the connection without closing the session has confirmed nothing, though it has read all."""
    receiver.ends_after, receiver.resets = 1, resets
    async with forwarding(sealed, url=receiver.url, ca_file=str(receiver.ca)) as forward:
        await until(lambda: len(receiver.messages) >= 3)
        assert forward.health(log.written).sequence == 0
        assert forward.health(log.written).error
        receiver.ends_after = None
        await until(lambda: forward.health(log.written).sequence == 1)

    assert {message.line + b"\n" for message in receiver.messages} == set(written(sealed))


async def test_a_receiver_that_does_not_close_the_session_confirms_nothing(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver
) -> None:
    """The end of the TCP connection alone confirms nothing: anyone on the path can end it."""
    receiver.answers = False
    async with forwarding(sealed, url=receiver.url, ca_file=str(receiver.ca)) as forward:
        await until(lambda: len(receiver.messages) >= 3)
        assert forward.health(log.written).sequence == 0
        receiver.answers = True
        await until(lambda: forward.health(log.written).sequence == 1)


async def test_a_receiver_that_closes_first_confirms_nothing(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver
) -> None:
    """A receiver that stops, and closes its sessions without having read everything, gets everything again."""
    receiver.closes_first = True
    async with forwarding(sealed, url=receiver.url, ca_file=str(receiver.ca)) as forward:
        await until(lambda: receiver.sessions >= 3)
        assert forward.health(log.written).sequence == 0
        receiver.closes_first = False
        await until(lambda: forward.health(log.written).sequence == 1)

    assert {message.line + b"\n" for message in receiver.messages} == set(written(sealed))


async def test_a_receiver_that_reads_nothing_delays_nothing_else(
    sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a receiver is stalled, entries are written, and another collector gets them."""
    monkeypatch.setattr(audit_syslog, "TIMEOUT", 0.3)
    collector = HttpCollector()
    receiver.reads.clear()
    async with (
        collector.serving(),
        forwarding(sealed, url=collector.url),
        forwarding(sealed, name="stalled", url=receiver.url, ca_file=str(receiver.ca)) as stalled,
    ):
        for number in range(3000):
            log.note("entry", number=number, text="x" * 500)
            if number % 200 == 199:
                await sealed.written_all(log)
        await until(lambda: len(collector.lines) == 3001)
        await until(lambda: stalled.health(log.written).error)
        assert stalled.health(log.written).behind == 3001
        assert (log.lost, log.error) == (0, None)
        receiver.reads.set()
        await until(lambda: stalled.health(log.written).behind == 0)

    assert list(dict.fromkeys(message.line + b"\n" for message in receiver.messages)) == written(sealed)


async def test_a_receiver_is_verified(sealed: SealedLog, log: AuditLog, receiver: SyslogReceiver) -> None:
    """Nothing is sent to a receiver whose certificate the system does not know, or that has another name."""
    async with forwarding(sealed, url=receiver.url) as forward:
        await until(lambda: "certificate verify failed" in (forward.health(0).error or ""))
    other = receiver.url.replace("127.0.0.1", "localhost")
    async with forwarding(sealed, url=other, ca_file=str(receiver.ca)) as forward:
        await until(lambda: "localhost" in (forward.health(0).error or ""))

    assert receiver.messages == []
    assert log.healthy


async def test_a_damaged_cursor_sends_the_file_again(sealed: SealedLog, log: AuditLog) -> None:
    """A cursor that cannot be read costs repetitions, and no entry."""
    collector = HttpCollector()
    async with collector.serving():
        for _ in range(2):
            async with forwarding(sealed, url=collector.url):
                await until(lambda: collector.lines)
            sealed.file.with_name("audit.jsonl.siem.cursor").write_bytes(b"\0")
            sent, collector.lines = collector.lines, []

    assert numbers(sent) == [1]
    assert log.healthy


async def test_a_crash_of_the_forwarding_is_reported(
    sealed: SealedLog, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the forwarding is logged, shown as a fault, and ends neither the thread nor the audit."""

    def broken(*_: object) -> list[object]:
        raise ZeroDivisionError

    collector, read = HttpCollector(), audit_tail.AuditTail.read
    monkeypatch.setattr(audit_tail.AuditTail, "read", broken)
    async with collector.serving(), forwarding(sealed, url=collector.url) as forward:
        await until(lambda: "see the log" in (forward.health(0).error or ""))
        monkeypatch.setattr(audit_tail.AuditTail, "read", read)
        await until(lambda: forward.health(0).error is None)

    assert len(collector.lines) == 1
    assert log.healthy
