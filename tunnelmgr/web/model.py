"""What the page shows, as plain values: made from the world and the API's JSON, filled into the templates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Protocol
from urllib.parse import urlencode

from tunnelmgr.control.agent_query import AgentQuery, Found
from tunnelmgr.control.loop_share import Turn
from tunnelmgr.control.problems import controller_problems
from tunnelmgr.control.units import duration
from tunnelmgr.control.views import Json, agent_in, history_view, status_view
from tunnelmgr.core.activity import Activity, Refusal, Transfer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cures import MARKS
from tunnelmgr.core.health import Telemetry, TrafficCounters
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import World
from tunnelmgr.web.agent_texts import explained, href, release, shown
from tunnelmgr.web.plots import HEIGHT, WIDTH, plots
from tunnelmgr.web.rendering import age_filter

ROWS: Final = 80
"""Agents on one page."""
MAX_SHOWN: Final = 15
"""Rows of each other table; the page says how many more there are."""
MAX_CHOICES: Final = 30
"""Groups and sources to select from; the others are found by a search."""
COLUMNS: Final = (
    ("phase", "Phase"),
    ("agent", "Agent"),
    ("group", "Group"),
    ("source", "Source"),
    ("since", "For"),
    ("pulled", "Pulled"),
    ("pushed", "Pushed"),
)
"""The columns of the table of agents that it can be sorted by."""


class Observed(Telemetry, Activity, Protocol):
    """What the page shows; `daemon/operations.py` implements it."""


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The parameters of the page: a selection of agents, and the number of the page of the table."""

    selected: AgentQuery
    parameters: tuple[tuple[str, str], ...]
    page: int

    @classmethod
    def parse(cls, parameters: Sequence[tuple[str, str]]) -> "PageQuery":
        """Return the query of a URL; raises ValueError with what to write instead.

        Empty values are ignored, as an HTML form sends them.
        """
        known = [(name, value) for name, value in parameters if name in PARAMETERS and value]
        number = next((value for name, value in parameters if name == "page" and value), "1")
        if not (number.isascii() and number.isdecimal() and len(number) < 7):  # noqa: PLR2004 - more than any fleet
            raise ValueError(f"invalid page {number!r}: write a number")
        return cls(AgentQuery.parse(known), tuple(known), max(1, int(number)))

    def link(self, **changes: str) -> str:
        """Return the URL of the page with other parameters; an empty one is left out."""
        kept = [(name, value) for name, value in self.parameters if name not in changes]
        return f"?{urlencode([*kept, *((name, value) for name, value in changes.items() if value)])}"

    def value(self, name: str) -> str:
        """Return the first value of a parameter, "" if it is not given."""
        return next((value for each, value in self.parameters if each == name), "")


PARAMETERS: Final = ("phase", "group", "source", "search", "sort", "departed")


async def overview(observed: Observed, query: PageQuery, now: float, turn: Turn) -> Json:
    """Return the model of the whole page."""
    world, health = observed.world, observed.health()
    found = await query.selected.select(world, observed.traffic, turn)
    status = status_view(world, health)
    await turn.pause()
    return {
        "root": "",
        "live": True,
        "now": timestamp(now),
        "age": age_filter(now),
        "status": status,
        "uptime": duration(health.uptime_s),
        "problems": controller_problems(status),
        "tiles": _tiles(status, query),
        "filters": _filters(world, query),
        "table": _table(world, observed.traffic, found, query),
        "quarantines": _quarantines(world, query),
        "plots": plots(observed.last_hour()),
        "plot_size": (WIDTH, HEIGHT),
        **_activity(world, observed.transfers(), observed.refusals()),
    }


def agent_page(observed: Observed, id_: AgentId, now: float) -> Json:
    """Return the model of one agent's page."""
    world, health = observed.world, observed.health()
    record = world.records[id_]
    transfers = [one for one in observed.transfers() if one.agent == id_]
    refusals = [one for one in observed.refusals() if one.agent == id_]
    return {
        "root": "../",
        "live": True,
        "now": timestamp(now),
        "age": age_filter(now),
        "status": {"controller": health.controller, "version": health.version},
        "uptime": duration(health.uptime_s),
        "agent": explained(agent_in(world, record, observed.traffic.get(id_))),
        "history": list(reversed(history_view(record))),
        **_activity(world, transfers, refusals),
    }


def _tiles(status: Json, query: PageQuery) -> list[Json]:
    chosen = query.value("phase")
    counts: Mapping[str, int] = status["phases"]
    return [
        {
            "phase": phase.value,
            "mark": MARKS[phase],
            "number": counts[phase.value],
            "href": query.link(phase="" if chosen == phase else phase.value),
            "chosen": chosen == phase,
        }
        for phase in (
            Phase.UP,
            Phase.CONNECTING,
            Phase.AWAITING_IDENTITY,
            Phase.DOWN,
            Phase.DRAINING,
            Phase.QUARANTINED,
        )
    ]


def _filters(world: World, query: PageQuery) -> Json:
    groups = {record.agent.group for record in world.records.values()}
    return {
        "phases": [phase.value for phase in Phase],
        "groups": sorted(groups)[:MAX_CHOICES],
        "sources": sorted(world.sources)[:MAX_CHOICES],
        "chosen": {name: query.value(name) for name in PARAMETERS},
        "active": any(query.value(name) for name in ("phase", "group", "source", "search", "departed")),
    }


def _table(world: World, traffic: Mapping[AgentId, TrafficCounters], found: list[Found], query: PageQuery) -> Json:
    pages = max(1, -(-len(found) // ROWS))
    page = min(query.page, pages)
    rows = found[(page - 1) * ROWS : page * ROWS]
    return {
        "rows": [shown(agent_in(world, one.record, traffic.get(one.record.agent.id))) for one in rows],
        "total": len(found),
        "first": (page - 1) * ROWS + 1 if rows else 0,
        "last": (page - 1) * ROWS + len(rows),
        "page": page,
        "pages": pages,
        "previous": query.link(page=str(page - 1)) if page > 1 else None,
        "next": query.link(page=str(page + 1)) if page < pages else None,
        "columns": [_column(name, title, query) for name, title in COLUMNS],
        "unsorted": query.link(sort="") if query.selected.sort != "newest" else None,
    }


def _column(name: str, title: str, query: PageQuery) -> Json:
    """Return a column's title, the link that sorts by it, and how it is sorted now (WAI-ARIA's `aria-sort`)."""
    sort = query.selected.sort
    ascends = name not in {"pulled", "pushed"}  # these begin with the most
    current = sort.removeprefix("-") == name
    reverse = sort.startswith("-")
    return {
        "name": name,
        "title": title,
        "href": query.link(sort=f"-{name}" if current and not reverse else name),
        "sorted": ("ascending" if ascends != reverse else "descending") if current else None,
    }


def _quarantines(world: World, query: PageQuery) -> Json:
    held = [record for record in world.records.values() if record.present and record.quarantine is not None]
    held.sort(key=lambda record: (-(record.quarantine.since if record.quarantine else 0), record.agent.id))
    return {
        "rows": [
            {
                **explained(agent_in(world, record, None)),
                "command": release(record.agent.id),
            }
            for record in held[:MAX_SHOWN]
        ],
        "more": max(0, len(held) - MAX_SHOWN),
        "all": query.link(phase=Phase.QUARANTINED.value),
    }


def _activity(world: World, transfers: Sequence[Transfer], refusals: Sequence[Refusal]) -> Json:
    largest = sorted(transfers, key=lambda one: (-(one.to_agent + one.from_agent), one.number))
    return {
        "transfers": {"rows": [_transfer(world, one) for one in largest[:MAX_SHOWN]], "more": len(largest[MAX_SHOWN:])},
        "refusals": {"rows": [_refusal(world, one) for one in refusals[:MAX_SHOWN]], "more": len(refusals[MAX_SHOWN:])},
    }


def _transfer(world: World, one: Transfer) -> Json:
    octets = one.to_agent + one.from_agent
    rate = octets / one.seconds if one.seconds > 0 else 0.0
    return {
        **asdict(one),
        "octets": octets,
        "rate": int(rate),
        "took": duration(one.seconds),
        **_caller(world, one.agent),
    }


def _refusal(world: World, one: Refusal) -> Json:
    return {**asdict(one), "at": timestamp(one.at), "since": timestamp(one.since), **_caller(world, one.agent)}


def _caller(world: World, id_: AgentId) -> dict[str, str]:
    """Return the name of the agent that sent a request, and the address of its page."""
    record = world.records.get(id_)
    return {"name": id_ if record is None else record.agent.name, "href": href(id_)}
