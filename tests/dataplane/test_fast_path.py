"""Whether the fast path is active: everything that it needs is examined, and without any part data still flows."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.dataplane.renamed_asyncssh import renamed
from tunnelmgr.dataplane import fast_path
from tunnelmgr.dataplane.asyncssh_attributes import ATTRIBUTES, CLASSES, Attribute
from tunnelmgr.dataplane.asyncssh_internals import OPAQUE_PIECE_BYTES
from tunnelmgr.dataplane.channel import ASYNCSSH_PIECE_BYTES, READ_AHEAD_BYTES
from tunnelmgr.dataplane.fast_path import FastPath, attribute_problems, fast_path_status, packet_processor, pass_on
from tunnelmgr.dataplane.receive_window import MAX_WINDOW_BYTES
from tunnelmgr.dataplane.ssh_packets import PACKET_DATA_BYTES

ROOT = Path(__file__).parents[2]
UNEXPORTED = ("GCMCipher", "GCMEncryption")
"""Classes that asyncssh does not export and the fast path needs."""


Carry = Callable[[Path], Mapping[str, Any]]


@pytest.fixture(scope="module")
def carry() -> Iterator[Carry]:
    """Carry data both ways in a separate process, with the asyncssh in a folder; return what it prints."""
    command = [sys.executable, "-W", "error", "-m", "tests.dataplane.carry_in_forks"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def carried(folder: Path) -> Mapping[str, Any]:
            print(folder, file=stdin, flush=True)
            facts: dict[str, Any] | None = json.loads(stdout.readline())
            assert facts is not None, "see standard error"
            return facts

        yield carried
        process.kill()


def test_with_a_verified_release_the_fast_path_is_active(carry: Carry) -> None:
    """Data goes past asyncssh, and unread bytes are bounded in both directions."""
    facts = carry(Path(asyncssh.__file__).parents[1])

    assert (facts["active"], facts["reason"]) == (True, None)
    assert facts["bulk"] > 0
    assert facts["from_agent"] <= MAX_WINDOW_BYTES


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=str)
def test_without_any_attribute_data_goes_through_the_public_api(
    attribute: Attribute, tmp_path: Path, carry: Carry
) -> None:
    """A release that has renamed an attribute disables the fast path; data flows both ways within the bounds."""
    facts = carry(renamed(attribute.name, tmp_path))

    assert not facts["active"]
    assert f"{attribute} is missing" in facts["reason"]
    assert facts["bulk"] == 0
    assert facts["to_agent"] <= ASYNCSSH_PIECE_BYTES + PACKET_DATA_BYTES
    assert facts["from_agent"] <= READ_AHEAD_BYTES + PACKET_DATA_BYTES


@pytest.mark.parametrize("name", UNEXPORTED)
def test_without_a_class_that_asyncssh_does_not_export_nothing_breaks(name: str, tmp_path: Path, carry: Carry) -> None:
    """A missing class disables the fast path at the start of the process."""
    facts = carry(renamed(name, tmp_path))

    assert not facts["active"]
    assert facts["bulk"] == 0


def test_every_attribute_that_the_code_uses_is_declared() -> None:
    """The private attributes in the source text of `asyncssh_internals` are exactly those of `ATTRIBUTES`."""
    text = (ROOT / "tunnelmgr/dataplane/asyncssh_internals.py").read_text(encoding="utf-8")
    code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)

    used = set(re.findall(r"\.(_[a-z]\w*|send_packet)", code))
    assert used == {attribute.name for attribute in ATTRIBUTES}


def test_no_other_file_names_a_private_attribute_of_asyncssh() -> None:
    """No other file uses a name in `ATTRIBUTES` as a foreign attribute."""
    names = {attribute.name for attribute in ATTRIBUTES if attribute.name.startswith("_")}
    for file in (ROOT / "tunnelmgr").rglob("*.py"):
        if file.name != "asyncssh_internals.py":
            foreign = re.findall(r"(?<!self)\.(_[a-z]\w*)", file.read_text(encoding="utf-8"))
            assert not names & set(foreign), file


# --- the examination ---


@pytest.mark.usefixtures("unverified_asyncssh")
def test_an_unverified_release_disables_it() -> None:
    """A release that is not in VERIFIED_RELEASES disables the fast path, even if its attributes fit."""
    assert fast_path_status() == FastPath(
        active=False, reason=f"asyncssh {asyncssh.__version__} is not verified; verified: "
    )


@pytest.fixture
def examined_again() -> Any:  # noqa: ANN401
    """Forget what was found, before and after."""
    fast_path_status.cache_clear()
    yield
    fast_path_status.cache_clear()


@pytest.mark.usefixtures("examined_again")
def test_a_cryptography_without_encrypt_into_disables_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `AESGCM.encrypt_into` the fast path is not active."""
    monkeypatch.setattr(fast_path, "AESGCM", object)

    assert fast_path_status() == FastPath(active=False, reason="cryptography has no AESGCM.encrypt_into")


@pytest.mark.usefixtures("examined_again")
def test_classes_with_other_arguments_disable_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a constructor disables the fast path and is its reason."""
    monkeypatch.setitem(CLASSES, fast_path.Channel, type("SSHTCPChannel", (), {}))

    path = fast_path_status()

    assert not path.active
    assert path.reason is not None
    assert "SSHTCPChannel() takes no arguments" in path.reason


@pytest.mark.parametrize(
    ("kind", "fitting", "other"),
    [
        (int, 1, True),
        (int, 1, 1.0),
        (float, 1, "1"),
        (float, 1.0, None),
        (bytes, b"", ""),
        (str | None, None, b""),
        (list[object], [], ()),
    ],
)
def test_an_attribute_of_another_type_is_a_problem(kind: object, fitting: object, other: object) -> None:
    """An attribute with another type than declared is reported with that type."""

    class Sample:
        value = fitting

    attribute = Attribute(Sample, "value", kind)
    assert list(attribute_problems([attribute], {Sample: Sample()})) == []
    Sample.value = other
    assert list(attribute_problems([attribute], {Sample: Sample()})) == [
        f"Sample.value is of type {type(other).__name__}"
    ]


# --- what arrives for others ---


def test_another_protocol_gets_everything_in_pieces() -> None:
    """A protocol that is not asyncssh's, as in a host key scan, gets all bytes in pieces."""
    received: list[bytes] = []

    class Other(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.append(data)

    other = Other()
    assert packet_processor(other) is pass_on
    assert pass_on(other, memoryview(bytes(OPAQUE_PIECE_BYTES + 36)), lambda: False) == (OPAQUE_PIECE_BYTES + 36, False)
    assert received == [bytes(OPAQUE_PIECE_BYTES), bytes(36)]
    assert pass_on(other, memoryview(bytes(OPAQUE_PIECE_BYTES + 36)), lambda: True) == (OPAQUE_PIECE_BYTES, True)
