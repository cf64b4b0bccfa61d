"""The state in PostgreSQL survives lost connections and restarts of the server."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from lab.postgres import Postgres
from tests.store.records import AGENT, RECORD
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.persistence import Changes
from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.cluster_database import ClusterDatabase
from tunnelmgr.store.connect import check_database
from tunnelmgr.store.database import connect, described
from tunnelmgr.store.postgres import PostgresStore, read_postgres

pytestmark = pytest.mark.acceptance


def test_a_whole_state_is_not_written_while_a_member_is_alive(url: str) -> None:
    """An import names the controllers that use the state, and changes nothing."""
    with closing(PostgresStore(url, "import")) as store, closing(ClusterDatabase(url, Member("registry-1"))) as member:
        member.join()
        with pytest.raises(StoreError, match="in use by registry-1; stop these controllers first"):
            store.write(Changes((RECORD,)))
        member.leave()

        store.write(Changes((RECORD,)))
        assert store.load().records == {AGENT.id: RECORD}


def test_the_next_controller_finds_what_the_last_one_wrote(url: str) -> None:
    """After the end of one controller another one takes over its state."""
    with closing(PostgresStore(url, "registry-1")) as first:
        first.write(Changes((RECORD,)))

    with closing(PostgresStore(url, "registry-2")) as second:
        assert second.load().records == {AGENT.id: RECORD}


def test_controllers_that_start_at_once_agree_on_the_secret(url: str) -> None:
    """Of several controllers that open a new state at the same time, one makes the secret, and all have it."""

    def start(name: str) -> bytes:
        with closing(PostgresStore(url, name)) as store:
            return store.load().secret

    with ThreadPoolExecutor(max_workers=4) as starting:
        secrets = set(starting.map(start, ("registry-1", "registry-2", "registry-3", "registry-4")))

    assert len(secrets) == 1
    assert len(secrets.pop()) == 32


def test_a_lost_connection_costs_one_write(url: str, server: Postgres) -> None:
    """The write fails as a whole, and the next one connects again."""
    with closing(PostgresStore(url, "registry-1")) as store, psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'state'")

        with pytest.raises(StoreError):
            store.write(Changes((RECORD,)))
        store.write(Changes((RECORD,)))

        assert store.load().records == {AGENT.id: RECORD}


def test_a_server_that_restarts_costs_no_state(url: str, server: Postgres) -> None:
    """What was written before a crash of the server is there after it, and writing continues."""
    with closing(PostgresStore(url, "registry-1")) as store:
        store.write(Changes((RECORD,)))
        server.stop()
        with pytest.raises(StoreError):
            store.write(Changes(forgotten=(AGENT.id,)))
        server.start()

        assert store.load().records == {AGENT.id: RECORD}
        store.write(Changes(forgotten=(AGENT.id,)))
        assert store.load().records == {}


def test_a_state_is_read_while_a_controller_uses_it(url: str) -> None:
    """An export needs no stop of the daemon."""
    with closing(PostgresStore(url, "registry-1")) as store:
        store.write(Changes((RECORD,)))

        assert read_postgres(url).records == {AGENT.id: RECORD}


def test_an_empty_database_has_no_state_to_read(url: str) -> None:
    """An export of a mistyped database says so and creates nothing."""
    with pytest.raises(StoreError, match="holds no state"):
        read_postgres(url)


def test_a_database_of_a_newer_release_is_refused(url: str) -> None:
    """A schema that this release does not know is left alone."""
    PostgresStore(url, "registry-1").close()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("INSERT INTO schema_version VALUES (99)")

    with pytest.raises(SchemaError, match="newer tunnelmgr"):
        PostgresStore(url, "registry-1")


def test_an_unreachable_server_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The error names the database, without the parameters of its URL."""
    with pytest.raises(StoreError, match=r"postgresql://.*/state: .*No such file"):
        PostgresStore(f"postgresql:///state?host={tmp_path}", "registry-1")


def test_a_description_holds_neither_user_nor_parameters() -> None:
    """What messages show of a URL is its host, port and database."""
    assert described("postgresql://admin@db.example:5433/state?passfile=/etc/x") == "postgresql://db.example:5433/state"


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("db-1.example:5432,db-2.example:5433", "db-1.example:5432,db-2.example:5433"),
        ("db-1.example,db-2.example", "db-1.example,db-2.example"),
        ("db-1.example,db-2.example:5433", "db-1.example,db-2.example:5433"),
        ("[fd00::1]:5432,[fd00::2]:5432", "[fd00::1]:5432,[fd00::2]:5432"),
        ("", ""),
    ],
)
def test_a_description_names_every_host_with_its_own_port(place: str, shown: str) -> None:
    """A database that fails over has several hosts, each of which is shown as the URL has it."""
    assert described(f"postgresql://{place}/state?target_session_attrs=read-write") == f"postgresql://{shown}/state"


def test_the_time_is_the_databases(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong wall clock of this machine does not change the time by which seeds expire."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)

    with closing(PostgresStore(url, "registry-1")) as store:
        assert abs(store.wall() - now) < 60


def test_a_transaction_of_a_client_that_stopped_responding_ends(url: str) -> None:
    """A frozen client keeps its locks for seconds only, so that another one can write what it has locked."""
    with closing(connect(url)) as frozen, closing(connect(url)) as other:
        frozen.execute("CREATE TABLE locked AS SELECT 1")
        frozen.execute("BEGIN")
        frozen.execute("LOCK TABLE locked")

        assert other.execute("SELECT count(*) AS rows FROM locked").fetchone() == {"rows": 1}


def test_a_check_says_whether_the_database_answers_and_who_uses_it(url: str) -> None:
    """`check` reports the server's version and the living members, and changes nothing."""
    empty = check_database(url)
    with closing(ClusterDatabase(url, Member("registry-1", rules="abc"))) as member:
        member.join()
        used = check_database(url)

    assert "/state answers, PostgreSQL " in empty.summary
    assert (used.summary.endswith("; members: registry-1"), used.rules) == (True, {"registry-1": "abc"})
    assert abs(used.clock_ahead) < 60


def test_a_check_names_a_user_who_may_not_create_tables(url: str) -> None:
    """A database user without the right to create tables is named before the daemon starts."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS reader")
        db.execute("CREATE ROLE reader LOGIN")

    with pytest.raises(StoreError, match="GRANT CREATE"):
        check_database(url.replace("user=postgres", "user=reader"))


def test_a_password_file_that_others_can_read_is_refused(url: str, tmp_path: Path) -> None:
    """The error says how to correct the file's mode, and does not show the password."""
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(0o644)

    with pytest.raises(StoreError, match="other users can read the password; run: chmod 600") as refused:
        PostgresStore(url, "registry-1", file)
    assert "secret" not in str(refused.value)

    file.chmod(0o600)
    PostgresStore(url, "registry-1", file).close()
