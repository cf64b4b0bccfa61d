"""What the holder of each source says, in the order in which it said it; every member reads all of it.

A listing of thousands of agents usually says the same as the one before. It is stored once; a repetition is a short
row that names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from psycopg.rows import DictRow

from tunnelmgr.core.cluster_messages import Discovered
from tunnelmgr.core.events import Event
from tunnelmgr.store.database import Connection, value
from tunnelmgr.store.event_codec import decode, encode

KEPT_SECONDS: Final = 60.0
"""Seconds for which an event is kept after a later one has replaced it."""
_FIRST: Final = """
SELECT coalesce(min(first), (SELECT coalesce(max(id), 0) FROM discovery)) FROM (
    SELECT max(id) - 1 AS first FROM discovery WHERE whole GROUP BY source
) AS whole
"""
"""The event before the oldest whole listing that is in force: a member that joins begins after it."""
_PUT: Final = """
INSERT INTO discovery (source, instance, event, whole, repeats) SELECT %s, %s, %s, %s, %s
WHERE EXISTS (SELECT FROM lease WHERE kind = 'source' AND id = %s AND holder = %s) RETURNING id
"""
"""What a member says of a source after another has taken that over is dropped: it may be outdated."""
_FORGET: Final = """
DELETE FROM discovery old WHERE source = %s AND at < now() - make_interval(secs => %s) AND EXISTS (
    SELECT FROM discovery newer WHERE newer.source = old.source AND newer.id > old.id
    AND (newer.whole OR (newer.repeats IS NOT NULL AND old.repeats IS NOT NULL))
)
"""
_NEW: Final = """
SELECT id, source, instance, event, whole, repeats FROM discovery
WHERE written >= %s::text::xid8 AND id > %s ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Listing:
    """The last whole listing of a source, and its number."""

    number: int
    text: str


@dataclass(slots=True)
class DiscoveryLog:
    """One member's view of the log. Call `connected` with each new connection, and `begin` before the first `read`.

    `instance` is that of its process: what an earlier process of this name has said is news to this one.
    """

    me: str
    instance: str
    _first: int = 0
    _recent: frozenset[int] = frozenset()  # those that the last read has returned
    _listings: dict[str, Listing] = field(default_factory=dict)

    def connected(self) -> None:
        """Begin again: what was not committed is not in the log."""
        self._recent = frozenset()
        self._listings.clear()

    def begin(self, connection: Connection) -> None:
        """Begin to read at the oldest listing that is in force."""
        self._first = int(value(connection, _FIRST))

    def write(self, connection: Connection, discovered: Sequence[Discovered]) -> None:
        """Add what this member has learnt, of the sources that it holds."""
        for one in discovered:
            text, known = encode(one.event), self._listings.get(one.source)
            repeats = known.number if known is not None and one.whole and known.text == text else None
            event, whole = ("", False) if repeats is not None else (text, one.whole)
            row = connection.execute(
                _PUT, (one.source, self.instance, event, whole, repeats, one.source, self.me)
            ).fetchone()
            if row is not None and whole:
                self._listings[one.source] = Listing(row["id"], text)
        for source in {one.source for one in discovered if one.whole}:
            connection.execute(_FORGET, (source, KEPT_SECONDS))

    def read(self, connection: Connection, since: str) -> tuple[Event, ...]:
        """Return what others have added since the last read; `since` is the first transaction that may be new."""
        rows = connection.execute(_NEW, (since, self._first)).fetchall()
        new = [row for row in rows if row["id"] not in self._recent and row["instance"] != self.instance]
        self._recent = frozenset(row["id"] for row in rows)
        return tuple(event for row in new if (event := decode(self._text(connection, row))) is not None)

    def _text(self, connection: Connection, row: DictRow) -> str:
        """Return an event as it was stored, and remember a whole listing."""
        if row["whole"]:
            self._listings[row["source"]] = Listing(row["id"], row["event"])
        if row["repeats"] is None:
            return str(row["event"])
        known = self._listings.get(row["source"])
        if known is None or known.number != row["repeats"]:
            found = connection.execute("SELECT event FROM discovery WHERE id = %s", (row["repeats"],)).fetchone()
            known = Listing(row["repeats"], "" if found is None else found["event"])
            self._listings[row["source"]] = known
        return known.text
