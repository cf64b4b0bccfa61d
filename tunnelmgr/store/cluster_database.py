"""The database as the members of a cluster meet in it: heartbeats, leases, what sources said, and requests.

One call of `tick` is one transaction: it renews this member's heartbeat, applies what the member requests, and returns
what has changed. All times are the database's; no member's clock is trusted.

A member is alive while its heartbeat is younger than `LEASE_SECONDS`. If its database session has ended too, which an
advisory lock shows, `QUIET_SECONDS` are enough: a killed process loses its session at once. The lock alone decides
nothing, because a connection may break while its member continues.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from psycopg.rows import DictRow

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import RemoteStatus
from tunnelmgr.core.cluster_messages import Incoming, Outgoing
from tunnelmgr.core.ownership import LEASE_SECONDS, Lease, LeaseChange, Member, Step, changed
from tunnelmgr.errors import StoreError
from tunnelmgr.store.database import (
    APPLICATION,
    CHANNEL,
    Connection,
    Database,
    described,
    execute_rows,
    migrate,
    value,
)
from tunnelmgr.store.discovery_log import DiscoveryLog
from tunnelmgr.store.event_codec import decode, encode
from tunnelmgr.store.rows import SELECT_AGENTS, SELECT_SEEDS, stored_state

GRACE_SECONDS: Final = 10.0
"""Seconds after a restart of the server, or after a member had to connect again, for which it waits for the others.

All members come back to a database that was away, each after as long as its hosts take to refuse or time out. One that
has come back is dead like any other if it falls silent again.
"""
QUIET_SECONDS: Final = 1.2
"""Seconds without a heartbeat after which a member whose session has ended is dead."""
FORGOTTEN_SECONDS: Final = 86400.0
"""Seconds without a heartbeat after which a member is forgotten."""
RELEASED_SECONDS: Final = 3600.0
"""Seconds for which a released lease is kept, so that all members learn that it is released."""
UP_TO_DATE_SECONDS: Final = 600.0
"""Seconds after which a member that has read nothing, as a frozen one, reads everything again; less than the above."""
_MEMBERS: Final = """
WITH start AS (SELECT greatest(
    pg_postmaster_start_time(), (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid() AND %s)
) AS at)
SELECT member.*, extract(epoch FROM now() - heartbeat)::float AS seen, session IN (
    SELECT objid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND datname = current_database() AND classid = %s AND objsubid = 2 AND granted
) AS connected, heartbeat < start.at AND now() - start.at < make_interval(secs => %s) AS in_grace
FROM member, start ORDER BY name
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
INSERT INTO lease (kind, id, holder, term, successor, ready, previous)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::boolean[], %s::text[])
ON CONFLICT (kind, id) DO UPDATE SET
    holder = excluded.holder, term = excluded.term, successor = excluded.successor, ready = excluded.ready,
    previous = excluded.previous, changed = now(), written = pg_current_xact_id()
"""
_FORGET_LEASES: Final = "DELETE FROM lease WHERE holder = '' AND changed < now() - make_interval(secs => %s)"
_PUT_STATUS: Final = """
UPDATE lease SET phase = new.phase, error = new.error, message = new.message, written = pg_current_xact_id()
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS new (phase, error, message, id, holder)
WHERE kind = 'agent' AND lease.id = new.id AND lease.holder = new.holder
"""


class ClusterDatabase:
    """One member's view of the database; every method blocks and raises StoreError."""

    def __init__(
        self, url: str, member: Member, password_file: Path | None = None, grace: float = GRACE_SECONDS
    ) -> None:
        self._grace = grace
        self._member = member
        self._instance = uuid.uuid4().hex
        self._database = Database(url, password_file, self._connected)
        self._seen_written = 0  # rows of this and later transactions are read again
        self._read_at = 0.0
        self._session: int | None = None
        self._is_locked = False
        self._came_back = False
        self._discovery = DiscoveryLog(member.name, self._instance)

    def join(self) -> None:
        """Become a member; raises StoreError if a process with this name has a session and a recent heartbeat.

        A killed process has no longer a session, so that it can be started again at once.
        """
        self._database.call(self._join)

    def tick(self, outgoing: Outgoing) -> Incoming:
        """Renew the heartbeat, apply what is requested, and return what is new."""
        return self._database.call(lambda connection: self._tick(connection, outgoing))

    def leave(self) -> None:
        """Remove this member, so that no member waits for its heartbeat to grow old."""
        self._database.call(self._leave)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def _connected(self, connection: Connection) -> None:
        """Read everything again, and show that this process has a session if it is a member already."""
        self._seen_written = 0
        self._discovery.connected()
        self._is_locked = False
        self._came_back = self._session is not None
        self._lock(connection)

    def _lock(self, connection: Connection) -> None:
        """Lock this member's session; the server may still have an earlier one, so that it must be tried again."""
        if self._session is not None and not self._is_locked:
            known = (APPLICATION, self._session)
            self._is_locked = bool(value(connection, "SELECT pg_try_advisory_lock(%s, %s)", known))

    def _join(self, connection: Connection) -> None:
        migrate(connection)
        me = self._member
        with connection.transaction():
            connection.execute("LOCK TABLE member IN SHARE ROW EXCLUSIVE MODE")
            other = {row["name"]: row for row in self._rows(connection)}.get(me.name)
            if other is not None and other["connected"] and other["seen"] < LEASE_SECONDS:
                raise StoreError(
                    f"{described(self._database.url)}: a controller with the name {me.name!r} is running, last seen "
                    f"{other['seen']:.0f}s ago; stop it, or set another controller.name"
                )
            values = (me.name, self._instance, me.zone, me.capacity, me.version, me.rules)
            connection.execute(
                "DELETE FROM member WHERE heartbeat < now() - make_interval(secs => %s)", (FORGOTTEN_SECONDS,)
            )
            self._session = int(value(connection, _JOIN, values))
            # What this name held is held by another process now, so its terms must no longer be valid.
            connection.execute(
                "UPDATE lease SET term = term + 1, successor = NULL, ready = false, written = pg_current_xact_id() "
                "WHERE holder = %s",
                (me.name,),
            )
            self._discovery.begin(connection)
        self._lock(connection)
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, me.name))

    def _leave(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute("DELETE FROM member WHERE instance = %s", (self._instance,))
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._member.name))

    def _tick(self, connection: Connection, outgoing: Outgoing) -> Incoming:
        self._lock(connection)
        with connection.transaction():
            renewed = connection.execute(
                "UPDATE member SET heartbeat = clock_timestamp(), draining = %s, rules = %s WHERE instance = %s",
                (outgoing.draining, outgoing.rules, self._instance),
            )
            if not renewed.rowcount:
                raise StoreError(
                    f"{described(self._database.url)}: another controller has taken the name {self._member.name!r}, or "
                    "removed this member; stop this controller, or set another controller.name"
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
        return connection.execute(_MEMBERS, (self._came_back, APPLICATION, self._grace)).fetchall()

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
        put: dict[tuple[str, str], tuple[object, ...]] = {}
        for change in ordered:
            key = (change.kind, change.id)
            after = changed(known.get(key), change, living)
            if after is not None:
                known[key] = after
                put[key] = (*key, after.holder, after.term, after.successor, after.ready, after.previous)
                accepted += 1
        with connection.cursor() as cursor:
            execute_rows(cursor, _PUT_LEASE, list(put.values()))
        if any(change.step is Step.RELEASE for change in ordered):
            connection.execute(_FORGET_LEASES, (RELEASED_SECONDS,))
        return accepted

    def _publish(self, connection: Connection, outgoing: Outgoing) -> None:
        me = self._member.name
        with connection.cursor() as cursor:
            execute_rows(
                cursor,
                _PUT_STATUS,
                [(one.phase, one.error, one.message, id_, me) for id_, one in sorted(outgoing.statuses.items())],
            )
            for agent, event in outgoing.requests:
                cursor.execute("INSERT INTO request (agent, event) VALUES (%s, %s)", (agent, encode(event)))
            for name, on in outgoing.drains.items():
                cursor.execute("UPDATE member SET to_drain = %s WHERE name = %s", (on, name))
            cursor.execute("DELETE FROM request WHERE id = ANY(%s)", (list(outgoing.done),))
        self._discovery.write(connection, outgoing.discovered)

    def _news(self, connection: Connection, members: Mapping[str, Member], accepted: int) -> Incoming:
        if time.monotonic() - self._read_at > UP_TO_DATE_SECONDS:
            self._seen_written = 0
        self._read_at = time.monotonic()
        since = str(self._seen_written)
        # Before the reads: what commits between them must be read again.
        self._seen_written = int(value(connection, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
        leases = connection.execute("SELECT * FROM lease WHERE written >= %s::text::xid8", (since,)).fetchall()
        agents = connection.execute(f"{SELECT_AGENTS} WHERE agent.written >= %s::text::xid8".encode(), (since,))
        state = stored_state(agents.fetchall(), connection.execute(SELECT_SEEDS).fetchall())
        discovered = self._discovery.read(connection, since)
        requests = connection.execute(
            "SELECT request.* FROM request JOIN lease ON lease.kind = 'agent' AND lease.id = request.agent "
            "WHERE holder = %s ORDER BY request.id",
            (self._member.name,),
        ).fetchall()
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
            discovered=discovered,
            requests=tuple((row["id"], event) for row in requests if (event := decode(row["event"])) is not None),
            complete=since == "0",
            accepted=accepted,
        )


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
