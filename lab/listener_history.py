"""Which member listened on which agent and when, by looks at the agents' own sockets; and what must hold of it.

Pure: `benchmarks/listener_watch.py` looks. Times are those of the monotonic clock, in seconds. What was between two
looks is unknown, so that a listener that is absent counts from the last look that found it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

CLIENTS_ADDRESS: Final = "127.0.0.1"
"""The address whose absence counts as a gap: clients use ::1 in addition at most."""

MOMENT: Final = 1.0
"""Seconds for which two members may have different addresses of one agent."""


@dataclass(frozen=True, slots=True)
class Change:
    """A look at an agent's listener on one address that found another member than the look before, at `last`.

    `member` is None if nobody listened.
    """

    agent: int
    address: str
    member: str | None
    at: float
    last: float


@dataclass(frozen=True, slots=True)
class Stay:
    """A time in which one member listened on an address of an agent: at all looks from `since` to `until`."""

    agent: int
    address: str
    member: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which at least one look at an agent found no listener."""

    agent: int
    since: float
    until: float

    @property
    def seconds(self) -> float:
        """Its length, from the last look before it to the first one after it."""
        return self.until - self.since


def _common(one: Stay, other: Stay) -> float:
    """Return how long both were there; negative if they were not."""
    return min(one.until, other.until) - max(one.since, other.since)


class ListenerHistory:
    """The changes so far, in the order of the looks; `now` is the time of the last look."""

    def __init__(self, changes: Iterable[Change], now: float) -> None:
        self.now = now
        self._changes: dict[tuple[int, str], list[Change]] = defaultdict(list)
        for change in changes:
            self._changes[change.agent, change.address].append(change)

    def stays(self) -> Iterator[Stay]:
        """Yield each time in which one member listened."""
        for change, last, _ in self._spans(*self._changes):
            if change.member is not None:
                yield Stay(change.agent, change.address, change.member, change.at, last)

    def gaps(self, since: float, until: float) -> list[Gap]:
        """Return the gaps that began in this time; one that has not ended counts until now."""
        keys = [key for key in self._changes if key[1] == CLIENTS_ADDRESS]
        return [
            Gap(change.agent, change.last, end)
            for change, _, end in self._spans(*keys)
            if change.member is None and since <= change.last < until
        ]

    def overlaps(self) -> list[tuple[Stay, Stay]]:
        """Return the pairs of members that were seen listening on one agent at one time, on any of its addresses.

        In a handover, the successor may have one address for a moment while the holder has not let the next one go. It
        accepts nothing until it has all of them, so that such a moment is allowed.
        """
        by_agent: dict[int, list[Stay]] = defaultdict(list)
        for stay in self.stays():
            by_agent[stay.agent].append(stay)
        return [
            (one, other)
            for stays in by_agent.values()
            for one, other in combinations(stays, 2)
            if one.member != other.member and _common(one, other) >= (MOMENT if one.address != other.address else 0.0)
        ]

    def members(self, agent: int, since: float, until: float) -> frozenset[str]:
        """Return who may have listened at the clients' address of an agent at some time in this interval.

        A member may have listened already before the look that found it, and after the last one that did.
        """
        return frozenset(
            change.member
            for change, _, end in self._spans((agent, CLIENTS_ADDRESS))
            if change.member is not None and change.last <= until and end >= since
        )

    def listening(self) -> dict[int, dict[str, str]]:
        """Return who listens on each agent's addresses now; an agent that nobody serves is missing."""
        found: dict[int, dict[str, str]] = defaultdict(dict)
        for (agent, address), changes in self._changes.items():
            if (member := changes[-1].member) is not None:
                found[agent][address] = member
        return dict(found)

    def _spans(self, *keys: tuple[int, str]) -> Iterator[tuple[Change, float, float]]:
        """Yield each change with the last look that confirmed it and the first one that differed."""
        for key in keys:
            changes = self._changes.get(key, [])
            for change, following in zip(changes, [*changes[1:], None], strict=False):
                yield change, *((self.now, self.now) if following is None else (following.last, following.at))
