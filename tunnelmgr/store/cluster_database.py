"""The database as the members of a cluster meet in it: heartbeats, leases, what sources said, and requests.

One call of `tick` is one transaction: it renews this member's heartbeat, applies what the member requests, and returns
what has changed. All times are the database's; no member's clock is trusted.

A member is alive while its heartbeat is younger than `LEASE_SECONDS`. If its database session has ended too, which an
advisory lock shows, `QUIET_SECONDS` are enough: a killed process loses its session at once. The lock alone decides
nothing, because a connection may break while its member continues.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg.rows import DictRow

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import RemoteStatus
from tunnelmgr.core.cluster_messages import Incoming, Outgoing
from tunnelmgr.core.ownership import LEASE_SECONDS, Lease, LeaseChange, Member, changed
from tunnelmgr.errors import StoreError
from tunnelmgr.store.event_codec import decode, encode
from tunnelmgr.store.postgres import APPLICATION, CHANNEL, connect, described, error_text, migrate, value
from tunnelmgr.store.rows import SELECT_AGENTS, SELECT_SEEDS, stored_state

Answer = TypeVar("Answer")
Connection = psycopg.Connection[DictRow]

GRACE_SECONDS: Final = 3.0
"""Seconds of a new session in which nobody is dead: after a restart of the database, all members come back to it."""
QUIET_SECONDS: Final = 1.2
"""Seconds without a heartbeat after which a member whose session has ended is dead."""
FORGOTTEN_SECONDS: Final = 86400.0
"""Seconds without a heartbeat after which a member is forgotten."""
KEPT_SECONDS: Final = 60.0
"""Seconds for which what a source said is kept after a whole listing has replaced it."""
_MEMBERS: Final = """
SELECT member.*, extract(epoch FROM now() - heartbeat)::float AS seen, session IN (
    SELECT objid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND datname = current_database() AND classid = %s AND objsubid = 2 AND granted
) AS connected, now() - (
    SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()
) < make_interval(secs => %s) AS in_grace FROM member ORDER BY name
"""
_JOIN: Final = """
INSERT INTO member (name, instance, zone, capacity, version, rules, started, heartbeat)
VALUES (%s, %s, %s, %s, %s, %s, now(), now())
ON CONFLICT (name) DO UPDATE SET
    instance = excluded.instance, session = DEFAULT, zone = excluded.zone, capacity = excluded.capacity,
    version = excluded.version, rules = excluded.rules, draining = false, to_drain = false,
    started = now(), heartbeat = now()
RETURNING session
"""
_PUT_LEASE: Final = """
INSERT INTO lease (kind, id, holder, term, successor, ready, previous) VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (kind, id) DO UPDATE SET
    holder = excluded.holder, term = excluded.term, successor = excluded.successor, ready = excluded.ready,
    previous = excluded.previous, written = pg_current_xact_id()
"""
_PUT_STATUS: Final = """
UPDATE lease SET phase = %s, error = %s, message = %s, written = pg_current_xact_id()
WHERE kind = 'agent' AND id = %s AND holder = %s
"""
_FORGET_DISCOVERY: Final = """
DELETE FROM discovery old WHERE source = %s AND at < now() - make_interval(secs => %s)
AND EXISTS (SELECT FROM discovery newer WHERE newer.source = old.source AND newer.whole AND newer.id > old.id)
"""


class ClusterDatabase:
    """One member's view of the database; every method blocks and raises StoreError."""

    def __init__(
        self, url: str, member: Member, password_file: Path | None = None, grace: float = GRACE_SECONDS
    ) -> None:
        self._grace = grace
        self._url = url
        self._password_file = password_file
        self._member = member
        self._instance = uuid.uuid4().hex
        self._connection: Connection | None = None
        self._seen_written = 0  # rows of this and later transactions are read again
        self._first_discovery = 0
        self._recent_discovery: frozenset[int] = frozenset()  # those that the last read has returned

    def join(self) -> None:
        """Become a member; raises StoreError if a process with this name has a session and a recent heartbeat.

        A killed process has no longer a session, so that it can be started again at once.
        """
        self._guarded(self._join)

    def tick(self, outgoing: Outgoing) -> Incoming:
        """Renew the heartbeat, apply what is requested, and return what is new."""
        return self._guarded(lambda connection: self._tick(connection, outgoing))

    def leave(self) -> None:
        """Remove this member, so that no member waits for its heartbeat to grow old."""
        self._guarded(self._leave)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        self._seen_written = 0
        if connection is not None:
            connection.close()

    def _guarded(self, act: Callable[[Connection], Answer]) -> Answer:
        try:
            if self._connection is None:
                self._connection = connect(self._url, self._password_file)
                self._lock_session(self._connection)
            return act(self._connection)
        except (psycopg.Error, OSError, UnicodeError) as failed:
            self.close()
            raise StoreError(f"{described(self._url)}: {error_text(failed)}") from failed

    def _lock_session(self, connection: Connection) -> None:
        """Show that this process has a session, if it is a member already."""
        known = connection.execute("SELECT to_regclass('member') AS known").fetchone()
        if known is None or known["known"] is None:
            return
        row = connection.execute("SELECT session FROM member WHERE instance = %s", (self._instance,)).fetchone()
        if row is not None:
            connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (APPLICATION, row["session"]))

    def _join(self, connection: Connection) -> None:
        migrate(connection)
        me = self._member
        with connection.transaction():
            connection.execute("LOCK TABLE member IN SHARE ROW EXCLUSIVE MODE")
            other = {row["name"]: row for row in self._rows(connection)}.get(me.name)
            if other is not None and other["connected"] and other["seen"] < LEASE_SECONDS:
                raise StoreError(
                    f"{described(self._url)}: a controller with the name {me.name!r} is running, last seen "
                    f"{other['seen']:.0f}s ago; stop it, or set another controller.name"
                )
            values = (me.name, self._instance, me.zone, me.capacity, me.version, me.rules)
            connection.execute(
                "DELETE FROM member WHERE heartbeat < now() - make_interval(secs => %s)", (FORGOTTEN_SECONDS,)
            )
            session = value(connection, _JOIN, values)
            # What this name held is held by another process now, so its terms must no longer be valid.
            connection.execute(
                "UPDATE lease SET term = term + 1, successor = NULL, ready = false, written = pg_current_xact_id() "
                "WHERE holder = %s",
                (me.name,),
            )
            self._first_discovery = int(value(connection, _FIRST_DISCOVERY))
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (APPLICATION, session))

    def _leave(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute("DELETE FROM member WHERE instance = %s", (self._instance,))
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._member.name))

    def _tick(self, connection: Connection, outgoing: Outgoing) -> Incoming:
        with connection.transaction():
            renewed = connection.execute(
                "UPDATE member SET heartbeat = clock_timestamp(), draining = %s, rules = %s WHERE instance = %s",
                (outgoing.draining, outgoing.rules, self._instance),
            )
            if not renewed.rowcount:
                raise StoreError(
                    f"{described(self._url)}: another controller has taken the name {self._member.name!r}, or removed "
                    "this member; stop this controller, or set another controller.name"
                )
            members = self._members(connection)
            accepted = self._apply(connection, outgoing.changes, {one.name for one in members.values() if one.alive})
            self._publish(connection, outgoing)
            if accepted or outgoing.discovered or outgoing.requests or outgoing.drains:
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._member.name))
            return self._news(connection, members, accepted)

    def _members(self, connection: Connection) -> dict[str, Member]:
        return {row["name"]: _member(row) for row in self._rows(connection)}

    def _rows(self, connection: Connection) -> list[DictRow]:
        return connection.execute(_MEMBERS, (APPLICATION, self._grace)).fetchall()

    def _apply(self, connection: Connection, wanted: Iterable[LeaseChange], living: set[str]) -> int:
        """Apply what `core/ownership.py` accepts to the locked rows; the order of the locks avoids deadlocks."""
        accepted = 0
        ordered = sorted(wanted)
        known: dict[tuple[str, str], Lease] = {}
        for kind in ("agent", "source"):
            ids = [change.id for change in ordered if change.kind == kind]
            if ids:
                rows = connection.execute(
                    "SELECT * FROM lease WHERE kind = %s AND id = ANY(%s) ORDER BY id FOR UPDATE", (kind, ids)
                ).fetchall()
                known.update({(kind, row["id"]): _lease(row) for row in rows})
        put = []
        for change in ordered:
            key = (change.kind, change.id)
            after = changed(known.get(key), change, living)
            if after is not None:
                known[key] = after
                put.append((*key, after.holder, after.term, after.successor, after.ready, after.previous))
                accepted += 1
        with connection.cursor() as cursor:
            cursor.executemany(_PUT_LEASE, put)
        return accepted

    def _publish(self, connection: Connection, outgoing: Outgoing) -> None:
        me = self._member.name
        with connection.cursor() as cursor:
            cursor.executemany(
                _PUT_STATUS,
                [(one.phase, one.error, one.message, id_, me) for id_, one in sorted(outgoing.statuses.items())],
            )
            cursor.executemany(
                "INSERT INTO discovery (source, member, event, whole) VALUES (%s, %s, %s, %s)",
                [(one.source, me, encode(one.event), one.whole) for one in outgoing.discovered],
            )
            for source in {one.source for one in outgoing.discovered if one.whole}:
                cursor.execute(_FORGET_DISCOVERY, (source, KEPT_SECONDS))
            cursor.executemany(
                "INSERT INTO request (agent, event) VALUES (%s, %s)",
                [(id_, encode(event)) for id_, event in outgoing.requests],
            )
            cursor.executemany(
                "UPDATE member SET to_drain = %s WHERE name = %s", [(on, name) for name, on in outgoing.drains.items()]
            )
            cursor.execute("DELETE FROM request WHERE id = ANY(%s)", (list(outgoing.done),))

    def _news(self, connection: Connection, members: Mapping[str, Member], accepted: int) -> Incoming:
        since = str(self._seen_written)
        # Before the reads: what commits between them must be read again.
        self._seen_written = int(value(connection, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
        leases = connection.execute("SELECT * FROM lease WHERE written >= %s::text::xid8", (since,)).fetchall()
        agents = connection.execute(f"{SELECT_AGENTS} WHERE agent.written >= %s::text::xid8".encode(), (since,))
        state = stored_state(agents.fetchall(), connection.execute(SELECT_SEEDS).fetchall())
        discovered = connection.execute(
            "SELECT id, event, member FROM discovery WHERE written >= %s::text::xid8 AND id > %s ORDER BY id",
            (since, self._first_discovery),
        ).fetchall()
        requests = connection.execute(
            "SELECT request.* FROM request JOIN lease ON lease.kind = 'agent' AND lease.id = request.agent "
            "WHERE holder = %s ORDER BY request.id",
            (self._member.name,),
        ).fetchall()
        new = [row for row in discovered if row["id"] not in self._recent_discovery]
        self._recent_discovery = frozenset(row["id"] for row in discovered)
        return Incoming(
            members=members,
            agents={AgentId(row["id"]): _lease(row) for row in leases if row["kind"] == "agent"},
            sources={row["id"]: _lease(row) for row in leases if row["kind"] == "source"},
            statuses={
                AgentId(row["id"]): RemoteStatus(row["phase"], row["error"], row["message"])
                for row in leases
                if row["kind"] == "agent"
            },
            records=tuple(state.records.values()),
            seeds=tuple(state.seeds.values()),
            discovered=tuple(
                event
                for row in new
                if row["member"] != self._member.name and (event := decode(row["event"])) is not None
            ),
            requests=tuple((row["id"], event) for row in requests if (event := decode(row["event"])) is not None),
            complete=since == "0",
            accepted=accepted,
        )


_FIRST_DISCOVERY: Final = """
SELECT coalesce(min(first), (SELECT coalesce(max(id), 0) FROM discovery)) FROM (
    SELECT max(id) - 1 AS first FROM discovery WHERE whole GROUP BY source
) AS whole
"""
"""The event before the oldest whole listing that is in force: a member that joins begins after it."""


def _member(row: DictRow) -> Member:
    seen = float(row["seen"])
    return Member(
        name=row["name"],
        zone=row["zone"],
        capacity=row["capacity"],
        version=row["version"],
        rules=row["rules"],
        draining=row["draining"],
        to_drain=row["to_drain"],
        alive=bool(row["in_grace"]) or (seen < LEASE_SECONDS and (bool(row["connected"]) or seen < QUIET_SECONDS)),
        seen=seen,
    )


def _lease(row: Mapping[str, Any]) -> Lease:
    return Lease(row["holder"], row["term"], row["successor"], row["ready"], row["previous"])
