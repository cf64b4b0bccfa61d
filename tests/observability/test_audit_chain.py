"""The chain of the audit log as it is written: links, rotation, restarts, crashes, and the seals."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.observability.sealed_log import SealedLog, entries
from tests.until import until
from tunnelmgr.errors import ConfigError
from tunnelmgr.observability import audit_log
from tunnelmgr.observability.audit_chain import NO_LINK, Head
from tunnelmgr.observability.audit_file import ChainSettings
from tunnelmgr.observability.audit_report import Kind
from tunnelmgr.observability.audit_seal import SealingKey, SealKey


def _shell(*words: str | Path, feed: str = "") -> str:
    return subprocess.run(words, input=feed, text=True, capture_output=True, check=True).stdout


async def test_a_shell_can_compute_each_link(sealed: SealedLog) -> None:
    """A link is the SHA-256 of the previous link, a line feed, and the line's bytes before its own link."""
    await sealed.write("one", "two")

    before = NO_LINK
    for line in sealed.file.read_text().splitlines():
        body, _, end = line.rpartition(',"link":"')
        before = _shell("sha256sum", feed=f"{before}\n{body}").split()[0]
        assert end == f'{before}"}}'


async def test_the_first_entry_names_the_one_before(sealed: SealedLog) -> None:
    """The first entry of a chain names nothing before it, and the first one of a later process the last of the file."""
    await sealed.write("one")
    await sealed.write("two")

    first, *_, third, fourth, _ = entries(sealed.file)
    assert first["previous"] == {"sequence": 0, "link": NO_LINK}
    assert [entry["code"] for entry in (third, fourth)] == ["audit-started", "two"]
    assert third["previous"]["sequence"] == third["sequence"] - 1
    assert "previous" not in fourth
    assert sealed.verdict().faults == []


async def test_the_chain_continues_over_a_rotation(sealed: SealedLog) -> None:
    """A new file begins with the link of the old file's last entry, in the same process and after a restart."""
    log = await sealed.start()
    log.note("one")
    await sealed.written("one")
    sealed.rotate()
    log.note("two")
    log.close()
    sealed.rotate()
    sealed.file.touch(0o640)  # as logrotate's `create` does
    await sealed.write("three")

    verdict = sealed.verdict()
    assert verdict.faults == []
    assert len(verdict.reports) == 3
    numbers = [entry["sequence"] for file in sealed.files()[::-1] for entry in entries(file)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_rotation_with_compression_is_continued(sealed: SealedLog) -> None:
    """After a restart with an empty file, the chain continues the newest rotated file, also if it is compressed."""
    await sealed.write("one")
    _shell("gzip", sealed.rotate())

    await sealed.write("two")

    assert sealed.verdict().faults == []
    assert len(sealed.verdict().reports) == 2


async def test_no_entry_is_lost_while_logrotate_runs(sealed: SealedLog) -> None:
    """Many rotations while entries are written leave every entry in one of the files, in one chain."""
    log = await sealed.start()
    for number in range(300):
        log.note("entry", number=number)
        if number % 30 == 29:
            await sealed.written_all(log)
            sealed.rotate()
    log.close()

    written = [entry["number"] for file in sealed.files()[::-1] for entry in entries(file) if "number" in entry]
    assert written == list(range(300))
    assert sealed.verdict().faults == []
    assert len(sealed.files()) == 11


async def test_an_entry_that_lacks_its_line_feed_is_completed(sealed: SealedLog) -> None:
    """A crash that cut nothing but the line feed costs nothing: the next process adds it."""
    await sealed.write("one")
    os.truncate(sealed.file, sealed.file.stat().st_size - 1)

    await sealed.write("two")

    assert [entry["sequence"] for entry in entries(sealed.file)] == [1, 2, 3, 4, 5, 6]
    assert not any("damage" in entry for entry in entries(sealed.file))
    assert sealed.verdict().faults == []


@pytest.mark.parametrize("cut", [2, 5, 40])
async def test_a_line_that_a_crash_has_cut_is_kept_and_recorded(sealed: SealedLog, cut: int) -> None:
    """The next entry records size and SHA-256 of an incomplete line, and the chain continues before it."""
    await sealed.write("zero")
    await sealed.write("one")
    os.truncate(sealed.file, sealed.file.stat().st_size - cut)
    assert [fault.kind for fault in sealed.verdict().faults] == [Kind.CUT]
    partial = sealed.file.read_bytes().rpartition(b"\n")[2]

    await sealed.write("two")

    again = json.loads(sealed.file.read_bytes().splitlines()[6])
    assert again["damage"] == {"bytes": len(partial), "sha256": hashlib.sha256(partial).hexdigest()}
    assert sealed.file.read_bytes().splitlines()[5] == partial
    verdict = sealed.verdict()
    assert verdict.faults == []
    assert any(f"{len(partial)} bytes of an entry that was cut" in note for note in verdict.notes)


async def test_an_entry_after_the_crash_does_not_hide_inserted_lines(sealed: SealedLog) -> None:
    """Whole lines outside the chain are a fault, although the next entry records them."""
    await sealed.write("one")
    with sealed.file.open("a") as out:
        out.write('{"time":"2030-01-01T00:00:00.000Z","sequence":4,"code":"request-allowed"}\n')

    await sealed.write("two")

    (fault,) = sealed.verdict().faults
    assert (fault.kind, fault.line) == (Kind.INSERTED, 4)


def _shortened(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))


def _replaced(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:-2]))


@pytest.mark.parametrize("change", [_shortened, _replaced])
async def test_a_cut_while_the_daemon_runs_is_found(sealed: SealedLog, change: Callable[[Path], None]) -> None:
    """The writer notices that the file is not as it left it, and names the entry that was there."""
    log = await sealed.start()
    for code in ("one", "two", "three"):
        log.note(code)
    await sealed.written("three")

    change(sealed.file)
    log.note("four")
    log.close()

    (fault,) = sealed.verdict().faults
    assert fault.kind is Kind.CUT
    assert "lacks sequence" in fault.detail


async def test_members_that_share_a_folder_have_chains_of_their_own(sealed: SealedLog) -> None:
    """A member whose file was rotated continues its own chain, and not that of the newer file beside it."""
    first, second = sealed.file, sealed.file.with_name("audit-2.jsonl")
    await sealed.write("one")
    sealed.rotate()
    sealed.file, sealed.name = second, "registry-2"
    await sealed.write("one", "two")
    sealed.file, sealed.name = first, "registry-1"
    await sealed.write("one")

    verdict = sealed.verdict(*first.parent.iterdir())
    assert verdict.faults == []
    ends = [(report.controller, report.begin and report.begin.sequence) for report in verdict.reports]
    assert ends == [("registry-1", 0), ("registry-1", 3), ("registry-2", 0)]


async def test_copytruncate_is_a_rotation_too(sealed: SealedLog) -> None:
    """A file that logrotate has copied and emptied continues the chain of the copy."""
    log = await sealed.start()
    log.note("one")
    await sealed.written("one")
    sealed.file.with_name("audit.jsonl.1").write_bytes(sealed.file.read_bytes())
    os.truncate(sealed.file, 0)
    log.note("two")
    log.close()

    assert len(sealed.verdict().reports) == 2
    assert sealed.verdict().faults == []


async def test_a_log_of_an_older_version_is_continued(sealed: SealedLog) -> None:
    """The numbers of lines without a chain continue, and the verification says that these lines have none."""
    sealed.file.write_text('{"sequence":6,"code":"old"}\n{"sequence":7,"code":"old"}\n')

    await sealed.write("new")

    first = entries(sealed.file)[2]
    assert (first["sequence"], first["previous"]) == (8, {"sequence": 7, "link": NO_LINK})
    verdict = sealed.verdict()
    assert verdict.faults == []
    assert any("lines 1 to 2 have no chain" in note for note in verdict.notes)


async def test_numbers_that_a_collector_has_are_not_used_again(sealed: SealedLog) -> None:
    """If the file has lost its end, as by a power failure, the chain continues after what was sent elsewhere."""
    await sealed.write("one")
    sealed.minimum_head = Head(50, "a" * 64)

    await sealed.write("two")

    started = entries(sealed.file)[3]
    assert (started["sequence"], started["previous"]["sequence"]) == (51, 50)
    (fault,) = sealed.verdict().faults
    assert (fault.kind, fault.line) == (Kind.CUT, 4)
    assert "sequences 4 to 50" in fault.detail


async def test_a_seal_is_written_at_intervals_and_at_a_stop(sealed: SealedLog) -> None:
    """Seals come at each interval in which there was an entry, and at a stop."""
    sealed.interval = 0.05
    log = await sealed.start()
    await sealed.written("audit-sealed")
    log.note("one")
    await until(lambda: sealed.file.read_text().count("audit-sealed") == 2)
    log.note("two")
    log.close()

    codes = [entry["code"] for entry in entries(sealed.file)]
    assert codes == ["audit-started", "audit-sealed", "one", "audit-sealed", "two", "audit-sealed"]
    assert {entry["signer"] for entry in entries(sealed.file) if "seal" in entry} == {sealed.key.fingerprint}
    assert sealed.verdict().notes == [f"sealed to the end, sequence 6, {entries(sealed.file)[-1]['time']}"]


async def test_the_first_seal_comes_soon(sealed: SealedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long interval begins with a seal that states it, soon after the start."""
    monkeypatch.setattr(audit_log, "FIRST_SEAL", 0.01)
    sealed.interval = 86400.0
    log = await sealed.start()
    await sealed.written("audit-sealed")
    log.close()

    assert [entry.get("interval") for entry in entries(sealed.file)] == [None, 86400.0]


async def test_without_a_key_there_is_a_chain_without_seals(sealed: SealedLog) -> None:
    """The chain needs no key."""
    sealed.settings = ChainSettings()

    await sealed.write("one")

    assert [entry["code"] for entry in entries(sealed.file)] == ["audit-started", "one"]
    assert sealed.verdict(keyed=False).faults == []


async def test_a_batch_that_cannot_be_synced_is_not_written_twice(
    sealed: SealedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `fsync(2)` did not confirm is removed and written again, so that no entry is there twice."""
    failures = [OSError(5, "Input/output error")]

    def fsync(_: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr("tunnelmgr.observability.audit_writer.RETRY_INTERVAL", 0.01)
    monkeypatch.setattr("tunnelmgr.observability.audit_file.os.fsync", fsync)
    sealed.sync = True

    await sealed.write("one")

    assert [entry["code"] for entry in entries(sealed.file)] == ["audit-started", "one", "audit-sealed"]
    assert sealed.verdict().faults == []


def _private(tmp_path: Path, *options: str) -> Path:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-f", file, *options], check=True)
    return file


@pytest.mark.parametrize(
    ("options", "mode", "problem"),
    [
        (("-t", "ed25519", "-N", "secret"), 0o600, "has a passphrase"),
        (("-t", "rsa", "-N", ""), 0o600, "is not an Ed25519 key"),
        (("-t", "ed25519", "-N", ""), 0o644, "can be read by others"),
    ],
)
def test_a_key_that_cannot_seal_is_refused(tmp_path: Path, options: tuple[str, ...], mode: int, problem: str) -> None:
    """The error for a key with a passphrase, of another type, or readable by others says what is wrong."""
    file = _private(tmp_path, *options)
    file.chmod(mode)

    with pytest.raises(ConfigError, match=problem):
        SealingKey.load(file)


def test_what_is_not_a_public_key_is_refused(tmp_path: Path) -> None:
    """The verification takes an Ed25519 public key only, and says so if it is given the private one."""
    file = _private(tmp_path, "-t", "ed25519", "-N", "")
    noise = tmp_path / "noise"
    noise.write_text("ssh-ed25519 AAAA\n")

    assert SealKey.load(file.with_suffix(".pub")).fingerprint == SealingKey.load(file).fingerprint
    for wrong, problem in ((file, "is a private key"), (noise, "not a public key"), (tmp_path / "none", "cannot read")):
        with pytest.raises(ConfigError, match=problem):
            SealKey.load(wrong)


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    """The fingerprint in a seal is the one that `ssh-keygen -l` prints."""
    file = _private(tmp_path, "-t", "ed25519", "-N", "")
    listed: Any = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True).stdout

    assert SealingKey.load(file).fingerprint == listed.split()[1]
