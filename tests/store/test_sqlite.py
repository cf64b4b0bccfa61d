"""The state in one SQLite file: consistent after any end of the process, and open to one writer only."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from tests.store.records import AGENT, RECORD, proved
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.trust import Method
from tunnelmgr.core.world import HISTORY_LENGTH, HistoryEntry, Record
from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.sqlite import APPLICATION, SqliteStore

MIGRATIONS = files("tunnelmgr.store.migrations") / "sqlite"
SCRIPTS = sorted(entry.name for entry in MIGRATIONS.iterdir() if entry.name.endswith(".sql"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a state file in a folder that is not there yet."""
    return tmp_path / "state" / "state.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """Open a new store."""
    with closing(SqliteStore(file)) as opened:
        yield opened


def read_again(store: SqliteStore) -> Record:
    """Close the store, open its file again, and return the one record in it."""
    store.close()
    with closing(SqliteStore(store.file)) as again:
        (record,) = again.load().records.values()
    return record


# --- how large it grows ---


def test_ten_thousand_small_writes_leave_a_short_wal(store: SqliteStore, file: Path) -> None:
    """Neither many writes nor one large write make the WAL file grow permanently."""
    store._db.execute("PRAGMA synchronous = OFF")  # the size is what counts here, not 10,000 waits for the disk
    history = tuple(HistoryEntry(1.5, "failed", "x" * 150) for _ in range(HISTORY_LENGTH))
    fleet = [
        replace(RECORD, agent=replace(AGENT, id=AgentId(f"ec2:i-{number}")), history=history) for number in range(600)
    ]
    wal = file.with_name("state.db-wal")

    store.write(Changes(tuple(fleet)))
    large = wal.stat().st_size
    sizes = []
    for number in range(10_000):
        store.write(Changes((replace(fleet[number % 600], changed=float(number), history=history[:1]),)))
        sizes.append(wal.stat().st_size)

    assert large > 5_000_000
    assert max(sizes[10:]) < 1_000_000


# --- what is kept ---


def test_a_pin_of_another_incarnation_is_never_believed(store: SqliteStore, file: Path) -> None:
    """A pin in the file that is of another incarnation than the agent is ignored."""
    store.write(Changes((proved(Method.CONSOLE),)))
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE pin SET incarnation = 'other'")

    assert read_again(store).proved is None


# --- whose file it is ---


def test_a_new_file_has_the_present_schema_and_mode_0600(store: SqliteStore, file: Path) -> None:
    """A new file has the present schema, and only its owner can read it."""
    store.close()

    with closing(sqlite3.connect(file)) as db:
        facts = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert facts == [APPLICATION, len(SCRIPTS)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("version", range(len(SCRIPTS)))
def test_a_file_of_an_earlier_schema_is_migrated(file: Path, version: int) -> None:
    """A file of an earlier schema is migrated, each step in a transaction of its own."""
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as db:
        for name in SCRIPTS[:version]:
            db.executescript((MIGRATIONS / name).read_text())
        db.execute(f"PRAGMA application_id = {APPLICATION if version else 0}")
        db.execute(f"PRAGMA user_version = {version}")

    with closing(SqliteStore(file)) as store:
        store.write(Changes((RECORD,)))
        assert store.load().records == {AGENT.id: RECORD}


def test_the_database_of_another_program_is_refused_and_not_changed(file: Path) -> None:
    """A database with tables of another program is refused and not changed."""
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE theirs (x)")
    before = file.read_bytes()

    with pytest.raises(SchemaError, match="belongs to another program"):
        SqliteStore(file)

    assert file.read_bytes() == before


def test_the_database_of_a_program_with_an_id_is_refused(file: Path) -> None:
    """A database with another program's application_id is refused, even if it is empty."""
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA application_id = 42")

    with pytest.raises(SchemaError, match="belongs to another program"):
        SqliteStore(file)


def test_a_file_that_is_not_a_database_is_refused(file: Path) -> None:
    """A file that is not a database is refused, and the error names it."""
    file.parent.mkdir()
    file.write_text("this is not a database, but long enough to be looked at" * 50)

    with pytest.raises(StoreError, match=f"{file}: file is not a database"):
        SqliteStore(file)


def test_a_folder_is_refused(file: Path) -> None:
    """A folder in place of the state file is a StoreError."""
    file.mkdir(parents=True)

    with pytest.raises(StoreError, match="Is a directory"):
        SqliteStore(file)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A state file in a folder that cannot be written is a StoreError that names the setting."""
    (tmp_path / "state").touch()

    with pytest.raises(StoreError, match=r"make the directory of controller\.state writable"):
        SqliteStore(tmp_path / "state" / "state.db")


def test_a_newer_schema_is_refused(store: SqliteStore, file: Path) -> None:
    """A file of a newer schema is refused, because this version would lose what it does not know."""
    store.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(SchemaError, match=r"was written by a newer tunnelmgr \(schema 99"):
        SqliteStore(file)


def test_there_is_one_writer(store: SqliteStore) -> None:
    """A second store on the same file is refused."""
    with pytest.raises(StoreError, match="another tunnelmgr uses this state"):
        SqliteStore(store.file)


def test_the_lock_is_released_with_its_holder(store: SqliteStore) -> None:
    """The lock is released when the store closes, or could not open the file."""
    store.close()

    SqliteStore(store.file).close()


def test_a_store_that_was_refused_holds_no_lock(store: SqliteStore, file: Path) -> None:
    """After a refusal, the same process can open the store once the cause is gone."""
    store.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(SchemaError):
        SqliteStore(file)
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {len(SCRIPTS)}")

    SqliteStore(file).close()


# --- all or nothing ---


def test_a_write_that_fails_leaves_nothing_behind(store: SqliteStore) -> None:
    """A write that fails changes nothing, and the next write succeeds."""
    unfit = replace(RECORD, agent=replace(AGENT, id=AgentId("ec2:i-0b"), port="no number"))  # type: ignore[arg-type]

    with pytest.raises(StoreError, match=str(store.file)):
        store.write(Changes((RECORD, unfit)))
    left = store.load().records
    store.write(Changes((RECORD,)))

    assert left == {}
    assert read_again(store) == RECORD


WRITE_ON = """
import sys
from dataclasses import replace
from pathlib import Path
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.world import Record
from tunnelmgr.store.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]))
for turn in range(100_000):
    agents = (Agent(AgentId(f"ec2:{number}"), str(turn), "s", "g", "n", ("10.0.0.1",)) for number in range(20))
    store.write(Changes(tuple(Record(agent, 1.0, 2.0) for agent in agents)))
    print(turn, flush=True)
"""


@pytest.mark.parametrize("after", [0, 3, 7, 20])
def test_kill_9_during_a_write_leaves_the_last_whole_write(file: Path, after: int) -> None:
    """After kill -9 during a write, everything confirmed is there, nothing is there in part, and a start succeeds."""
    with subprocess.Popen([sys.executable, "-c", WRITE_ON, file], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        confirmed = next(int(line) for line in child.stdout if int(line) >= after)
        child.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait(10)

    with closing(SqliteStore(file)) as store:
        turns = {int(record.agent.incarnation) for record in store.load().records.values()}
        store.write(Changes((RECORD,)))

    assert len(turns) == 1
    assert turns <= {confirmed, confirmed + 1}


FILL_UP = """
import subprocess, sys
from dataclasses import replace
from pathlib import Path
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.world import Record
from tunnelmgr.errors import StoreError
from tunnelmgr.store.sqlite import SqliteStore

place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
store = SqliteStore(place / "state.db")
first = Record(Agent(AgentId("ec2:first"), "1", "s", "g", "n", ("10.0.0.1",)), 1.0, 2.0)
store.write(Changes((first,)))
filler = place / "filler"
with filler.open("wb", buffering=0) as taking:
    try:
        while True:
            taking.write(bytes(4096))
    except OSError as full:
        assert full.errno == 28, full
many = Changes(tuple(replace(first, agent=replace(first.agent, id=AgentId(f"ec2:{n}"))) for n in range(500)))
for attempt in range(3):
    try:
        store.write(many)
    except StoreError as full:
        print("refused:", full)
    else:
        sys.exit("a full disk took it")
assert store.load().records.keys() == {"ec2:first"}, "nothing half-written"
filler.unlink()
store.write(many)
store.close()
store = SqliteStore(place / "state.db")
print("kept:", len(store.load().records))
store.close()
"""


def has_namespaces() -> bool:
    """Return whether we may mount something for ourselves."""
    tried = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "true"], check=False, capture_output=True, timeout=10
    )
    return tried.returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="needs a mount namespace")
def test_a_full_disk_refuses_a_write_which_succeeds_once_there_is_room(tmp_path: Path) -> None:
    """A write that fails because the disk is full succeeds once there is room."""
    program = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FILL_UP, tmp_path]

    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60, env=dict(os.environ))

    assert done.returncode == 0, done.stderr
    *refused, kept = done.stdout.splitlines()
    assert len(refused) == 3
    assert all("full" in line for line in refused)
    assert kept == "kept: 501"
