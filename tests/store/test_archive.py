"""The state as an archive: complete, checked, and readable by a later release."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.records import AGENT, KEY, RECORD
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Quarantine
from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.archive import read_archive, write_archive
from tunnelmgr.store.sqlite import SqliteStore, read_sqlite

NOW = 1_700_000_000.0
OTHER = replace(
    RECORD,
    agent=replace(AGENT, id=AgentId("hetzner:7"), name="odd \ud800 name"),
    present=False,
    proved=HostTrust(Method.CONSOLE, (KEY,), "console of i-0a"),
    possessed=(KEY,),
    quarantine=Quarantine(3.5, "host-key-shared", "claimed by two", disputed=(KEY,), examined=True),
    history=(HistoryEntry(1.5, "failed", "unreachable", None, 4, 1.0),),
)
MEMORY = StoredState(
    {AGENT.id: RECORD, OTHER.agent.id: OTHER},
    {"one": Seed("one", KEY, 9.5), "two": Seed("two", KEY, 9.5, AGENT.id, "1")},
    b"\0 secret",
)


def test_everything_that_is_stored_comes_back_from_an_archive() -> None:
    """An archive holds the secret, and every agent and seed with all that the store keeps of them."""
    assert read_archive(write_archive(MEMORY, NOW)) == MEMORY


def test_an_empty_state_has_an_archive() -> None:
    """The archive of an empty state without a secret is valid and empty."""
    assert read_archive(write_archive(StoredState(), NOW)) == StoredState()


def test_an_archive_is_the_same_whatever_order_the_state_has() -> None:
    """Two exports of one state at one time are equal, so that a difference shows a change."""
    reordered = replace(
        MEMORY, records=dict(reversed(MEMORY.records.items())), seeds=dict(reversed(MEMORY.seeds.items()))
    )

    assert list(write_archive(reordered, NOW)) == list(write_archive(MEMORY, NOW))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda lines: lines[:-1], "its last line is missing"),
        (lambda lines: lines[:0], "its last line is missing"),
        (lambda lines: lines[:1] + lines[2:], "agents is 1, but the archive was written with 2"),
        (lambda lines: [line.replace("jenkins", "jenkinz") for line in lines], "sha256 is "),
        (lambda lines: [*lines, lines[1]], "line 8 of the archive is invalid.*after the last one"),
        (lambda lines: ["nonsense\n", *lines], "line 1 of the archive is invalid"),
        (lambda lines: lines[1:], "line 1 of the archive is invalid.*expected a line with format"),
        (lambda lines: [lines[0].replace('"version":1', '"version":2'), *lines[1:]], "version 2 is not supported"),
        (lambda lines: [lines[0], '{"agent":{"id":"a"}}\n', *lines[1:]], "line 2 of the archive is invalid"),
        (lambda lines: [lines[0], "[" * 100_000 + "\n"], "line 2 of the archive is invalid"),
    ],
)
def test_a_damaged_archive_is_refused_with_its_reason(damage: Callable[[list[str]], list[str]], why: str) -> None:
    """A damaged, incomplete or unknown archive is refused with the line and the reason."""
    with pytest.raises(StoreError, match=why):
        read_archive(damage(list(write_archive(MEMORY, NOW))))


def test_an_archive_is_one_json_object_a_line() -> None:
    """Every line is a JSON object in ASCII, so that other tools can read it."""
    lines = list(write_archive(MEMORY, NOW))

    assert all(line.isascii() and line.endswith("\n") and isinstance(json.loads(line), dict) for line in lines)
    assert json.loads(lines[0]) == {"format": "tunnelmgr-state", "version": 1, "time": "2023-11-14T22:13:20.000Z"}


def test_a_state_file_is_read_while_a_daemon_writes_it(tmp_path: Path) -> None:
    """The last whole write is read, although another process holds the lock and has more in its log."""
    file = tmp_path / "state.db"
    with closing(SqliteStore(file)) as store:
        store.write(Changes((RECORD,)))

        assert read_sqlite(file).records == {AGENT.id: RECORD}


def test_a_state_of_the_first_schema_is_read_without_a_secret(tmp_path: Path) -> None:
    """A state that no daemon has opened since the upgrade can be exported; it has no secret yet."""
    file = tmp_path / "state.db"
    with closing(SqliteStore(file)) as store:
        store.write(Changes((RECORD,)))
    with closing(sqlite3.connect(file)) as older:
        older.executescript("DROP TABLE secret; PRAGMA user_version = 1")

    assert read_sqlite(file) == StoredState({AGENT.id: RECORD})


def test_a_missing_state_file_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    """An export of a mistyped path creates nothing."""
    with pytest.raises(StoreError, match="there is no state file"):
        read_sqlite(tmp_path / "state.db")

    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_program_is_not_exported(tmp_path: Path) -> None:
    """A database of another program is refused."""
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE agent (id TEXT)")

    with pytest.raises(SchemaError, match="another program"):
        read_sqlite(file)
