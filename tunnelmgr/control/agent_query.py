"""Which agents a request asks for, and in which order: the parameters of `/v1/agents` and of the status page."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tunnelmgr.control.loop_share import Turn
from tunnelmgr.control.views import phase_of
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.health import TrafficCounters
from tunnelmgr.core.spelling import nearest
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Record, World, status_of

MAX_LIMIT: Final = 1000
"""Agents in one page."""
MAX_SEARCH: Final = 200
"""Characters of a text to search for."""


class Found(NamedTuple):
    """An agent that matches, with what it may be sorted by."""

    record: Record
    phase: str
    since: float
    pulled: int
    pushed: int


URGENCY: Final[Mapping[str, int]] = {
    phase: place
    for place, phase in enumerate(
        (
            Phase.QUARANTINED,
            Phase.DOWN,
            Phase.AWAITING_IDENTITY,
            Phase.CONNECTING,
            Phase.DRAINING,
            Phase.UP,
        )
    )
}
"""The phases in the order in which a person should look at them."""
SortKey = str | float
SORTS: Final[Mapping[str, Callable[[Found], SortKey]]] = {
    "newest": lambda found: -found.record.first_seen,
    "agent": lambda found: found.record.agent.id,
    "name": lambda found: found.record.agent.name,
    "group": lambda found: found.record.agent.group,
    "source": lambda found: found.record.agent.source,
    "phase": lambda found: URGENCY[found.phase],
    "since": lambda found: -found.since,
    "pulled": lambda found: -found.pulled,
    "pushed": lambda found: -found.pushed,
}
"""What agents can be sorted by: words by alphabet, the phase by urgency, times from the newest, bytes from the most."""


@dataclass(frozen=True, slots=True)
class AgentQuery:
    """A selection of agents. An empty `phases`, `groups` or `sources` selects all; a leading `-` reverses `sort`."""

    phases: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    search: str = ""
    sort: str = "newest"
    departed: bool = False
    limit: int | None = None
    after: tuple[SortKey, str] | None = None

    @classmethod
    def parse(cls, parameters: Sequence[tuple[str, str]]) -> "AgentQuery":
        """Return the query in the parameters of a URL; raises ValueError with what to write instead.

        `phase`, `group` and `source` may be repeated; of the others, the last one counts.
        """
        one = dict(parameters)
        phases = _all(parameters, "phase")
        for phase in phases:
            if phase not in URGENCY:
                raise ValueError(_unknown("phase", phase, list(Phase)))
        sort = one.get("sort", "newest")
        if sort.removeprefix("-") not in SORTS:
            raise ValueError(_unknown("sort", sort, list(SORTS)))
        return cls(
            phases=phases,
            groups=_all(parameters, "group"),
            sources=_all(parameters, "source"),
            search=one.get("search", "")[:MAX_SEARCH].strip().casefold(),
            sort=sort,
            departed=_truth("departed", one.get("departed", "false")),
            limit=_limit(one.get("limit")),
            after=_position(one.get("cursor")),
        )

    async def select(self, world: World, traffic: Mapping[AgentId, TrafficCounters], turn: Turn) -> list[Found]:
        """Return all agents that match, in order."""
        found: list[Found] = []
        async for records in turn.slices(list(world.records.values())):
            found += self.matching(world, records, traffic)
        found = self.ordered(found)
        await turn.pause()
        return found

    def matching(
        self, world: World, records: Iterable[Record], traffic: Mapping[AgentId, TrafficCounters]
    ) -> Iterator[Found]:
        """Yield those of these agents that match."""
        for record in records:
            id_ = record.agent.id
            if not (self.departed or record.present or id_ in world.tunnels):
                continue
            found = _found(world, record, traffic.get(id_))
            if self._matches(world, found):
                yield found

    def ordered(self, found: Iterable[Found]) -> list[Found]:
        """Return agents in the order of the query."""
        by_id = sorted(found, key=lambda one: one.record.agent.id)
        by_id.sort(key=self._key, reverse=self._reverse)  # a stable sort: equal ones stay in the order of ids
        return by_id

    @property
    def _key(self) -> Callable[[Found], SortKey]:
        return SORTS[self.sort.removeprefix("-")]

    @property
    def _reverse(self) -> bool:
        return self.sort.startswith("-")

    def page(self, found: list[Found]) -> tuple[list[Found], str | None]:
        """Return the agents after the cursor up to the limit, and the cursor of the next page if there is one.

        The cursor is the last agent's place in the order, so agents that come or leave in between move no other one
        from one page to the next.
        """
        after = self._after(found)
        if self.limit is None or len(after) <= self.limit:
            return after, None
        last = after[self.limit - 1]
        return after[: self.limit], _cursor((self._key(last), last.record.agent.id))

    def _after(self, found: list[Found]) -> list[Found]:
        if self.after is None:
            return found
        key, reverse, (place, id_) = self._key, self._reverse, self.after
        try:
            return [one for one in found if _is_after((key(one), one.record.agent.id), (place, id_), reverse=reverse)]
        except TypeError as other:
            raise ValueError("the cursor belongs to another sort; begin without a cursor") from other

    def _matches(self, world: World, found: Found) -> bool:
        record, agent = found.record, found.record.agent
        return (
            (not self.groups or agent.group in self.groups)
            and (not self.sources or agent.source in self.sources)
            and (not self.phases or found.phase in self.phases)
            and (not self.search or self._is_found_in(world, record))
        )

    def _is_found_in(self, world: World, record: Record) -> bool:
        agent = record.agent
        texts = (
            agent.id,
            agent.name,
            agent.group,
            agent.source,
            *agent.addresses,
            status_of(world, record).error or "",
        )
        return any(self.search in text.casefold() for text in texts)


def _found(world: World, record: Record, traffic: TrafficCounters | None) -> Found:
    return Found(
        record,
        phase_of(world, record),
        status_of(world, record).since,
        traffic.to_agent if traffic else 0,
        traffic.from_agent if traffic else 0,
    )


def _all(parameters: Sequence[tuple[str, str]], wanted: str) -> frozenset[str]:
    return frozenset(value for name, value in parameters if name == wanted)


def _unknown(name: str, given: str, known: Sequence[str]) -> str:
    near = nearest(given, known)
    return f"unknown {name} {given!r}{f' (did you mean {near}?)' if near else ''}; use one of: {', '.join(known)}"


def _truth(name: str, given: str) -> bool:
    if given not in {"true", "false"}:
        raise ValueError(f"invalid {name} {given!r}: write true or false")
    return given == "true"


def _limit(given: str | None) -> int | None:
    if given is None:
        return None
    if not (
        given.isascii() and given.isdecimal() and len(given) <= len(str(MAX_LIMIT)) and 1 <= int(given) <= MAX_LIMIT
    ):
        raise ValueError(f"invalid limit {given!r}: write a number from 1 to {MAX_LIMIT}")
    return int(given)


def _cursor(position: tuple[SortKey, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _position(cursor: str | None) -> tuple[SortKey, str] | None:
    if cursor is None:
        return None
    try:
        position: Any = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as invalid:
        raise ValueError("invalid cursor; begin without one") from invalid
    match position:
        case [str() | int() | float() as place, str() as id_]:
            return place, id_
    raise ValueError("invalid cursor; begin without one")


def _is_after(one: tuple[Any, str], other: tuple[Any, str], *, reverse: bool) -> bool:
    if one[0] == other[0]:
        return one[1] > other[1]
    return bool(one[0] < other[0]) if reverse else bool(one[0] > other[0])
