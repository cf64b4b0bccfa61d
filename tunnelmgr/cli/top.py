"""`top`: the transfers in progress and the busiest agents, as they change."""

import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.command import Command, command
from tunnelmgr.cli.options import ConfigOption, JsonOption, SocketOption, client
from tunnelmgr.cli.output import print_json, print_rendered, stdout
from tunnelmgr.cli.render import PHASE_STYLES
from tunnelmgr.cli.render_text import cell, count
from tunnelmgr.control.client import ControlClient
from tunnelmgr.control.units import duration, size

Json = dict[str, Any]
MIN_INTERVAL = 0.2
"""Seconds between two samples at least."""
MAX_INTERVAL = 3600.0
TO_AGENT, FROM_AGENT = "bytes_to_agent", "bytes_from_agent"
FEW = 10
"""Rows of a table if nobody knows how high the terminal is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon showed at one moment, by this machine's clock in seconds."""

    at: float
    status: Json
    agents: list[Json]
    transfers: list[Json]

    @classmethod
    def now(cls, daemon: ControlClient) -> "Sample":
        """Ask the daemon."""
        return cls(time.monotonic(), daemon.status(), daemon.agents(), daemon.transfers())


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second since the sample before: by agent to and from it, by transfer in its larger direction."""

    to_agents: float = 0.0
    from_agents: float = 0.0
    agents: dict[str, tuple[float, float]] = field(default_factory=dict)
    transfers: dict[int, float] = field(default_factory=dict)

    @classmethod
    def between(cls, before: Sample, now: Sample) -> "Rates":
        """Return the rates; counters that have started again, as those of a new tunnel, count from zero."""
        seconds = max(now.at - before.at, 1e-6)
        known = {agent["agent"]: agent for agent in before.agents}
        agents = {
            agent["agent"]: (
                _increase(known.get(agent["agent"]), agent, TO_AGENT) / seconds,
                _increase(known.get(agent["agent"]), agent, FROM_AGENT) / seconds,
            )
            for agent in now.agents
        }
        seen = {one["number"]: one for one in before.transfers}
        transfers = {one["number"]: _transfer_rate(seen.get(one["number"]), one, seconds) for one in now.transfers}
        to_agents = sum(to_agent for to_agent, _ in agents.values())
        from_agents = sum(from_agent for _, from_agent in agents.values())
        return cls(to_agents, from_agents, agents, transfers)


def _transfer_rate(before: Json | None, now: Json, seconds: float) -> float:
    """Return the bytes a second of a transfer; one that started since the sample before has had less time."""
    increase = max(_increase(before, now, TO_AGENT), _increase(before, now, FROM_AGENT))
    return increase / (seconds if before is not None else max(now["seconds"], MIN_INTERVAL))


def _increase(before: Json | None, now: Json, key: str) -> int:
    old = 0 if before is None else int(before[key])
    new = int(now[key])
    return new - old if new >= old else new


def register(app: typer.Typer) -> None:
    """Add this command."""
    example = "Examples: `tunnelmgr top` · `tunnelmgr top --once --json | jq .transfers`"
    app.command(cls=Command, rich_help_panel="Inspect", epilog=example)(top)


@command
def top(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two samples", min=MIN_INTERVAL, max=MAX_INTERVAL)
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one sample with its rates, and end")] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the transfers in progress and the busiest agents, with their rates, until Ctrl-C.

    Without a terminal, or with --json, it shows one sample and ends.
    """
    daemon, console = client(context, config, socket), stdout()
    before = Sample.now(daemon)
    if once or as_json or not console.is_terminal:
        time.sleep(interval)
        now = Sample.now(daemon)
        rates = Rates.between(before, now)
        print_json(as_facts(now, rates)) if as_json else print_rendered(screen(now, rates, sys.maxsize))
        return
    try:
        with Live(screen(before, Rates(), console.height), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                now = Sample.now(daemon)
                live.update(screen(now, Rates.between(before, now), console.height), refresh=True)
                before = now
    except KeyboardInterrupt:
        return


def as_facts(now: Sample, rates: Rates) -> Json:
    """Return what `--json` prints: transfers and agents with their rates, the fastest first."""
    return {
        "bytes_per_s": {"to_agents": round(rates.to_agents), "from_agents": round(rates.from_agents)},
        "transfers": [one | {"bytes_per_s": round(rates.transfers[one["number"]])} for one in _fastest(now, rates)],
        "agents": [
            {
                "agent": agent["agent"],
                "name": agent["name"],
                "phase": agent["phase"],
                "channels": agent["channels"],
                "to_agent_per_s": round(rates.agents[agent["agent"]][0]),
                "from_agent_per_s": round(rates.agents[agent["agent"]][1]),
            }
            for agent in _busiest(now, rates)
        ],
    }


def screen(now: Sample, rates: Rates, height: int) -> RenderableType:
    """Return a sample for a terminal of this height: a summary, then transfers and agents, as many as fit."""
    facts = now.status
    phases = ", ".join(f"{number} {phase}" for phase, number in facts["phases"].items() if number) or "none"
    head = Text.assemble(
        (f"{facts['controller']} ", "bold"),
        cell(f"up {duration(facts['uptime_s'])} · {count(facts['agents'], 'agent')}: {phases}"),
        (f"   ↓ {_rate(rates.to_agents)}  ↑ {_rate(rates.from_agents)}", "cyan"),
    )
    rows = max(FEW, height) - 8  # the head, and the lines around two tables
    transfers = _fastest(now, rates)[: max(3, rows // 2)]
    agents = _busiest(now, rates)[: max(3, rows - len(transfers))]
    return Group(head, _transfers(transfers, rates, len(now.transfers)), _agents(agents, rates))


def _fastest(now: Sample, rates: Rates) -> list[Json]:
    return sorted(now.transfers, key=lambda one: (-rates.transfers.get(one["number"], 0.0), one["number"]))


def _busiest(now: Sample, rates: Rates) -> list[Json]:
    """Return the agents that are here: those with most bytes a second first, then those without a tunnel."""

    def order(agent: Json) -> tuple[float, bool, str]:
        return -sum(rates.agents.get(agent["agent"], (0.0, 0.0))), agent["phase"] == "up", agent["agent"]

    return sorted((agent for agent in now.agents if agent["present"]), key=order)


def _transfers(rows: list[Json], rates: Rates, total: int) -> RenderableType:
    if not rows:
        return Text("no transfer in progress", style="dim")
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, title_justify="left", title_style="dim")
    table.title = f"{count(total, 'request')} in progress"
    for name in ("AGENT", "GROUP", "ACTION", "REPOSITORY", "DONE", "RATE", "TIME"):
        table.add_column(name, justify="right" if name in {"DONE", "RATE", "TIME"} else "left", overflow="ellipsis")
    for one in rows:
        table.add_row(
            cell(one["agent"]),
            cell(one["group"]),
            cell(one["action"]),
            cell(f"{one['repository']} {one['reference'][:19]}".strip() or "-"),
            Text(size(max(one["bytes_to_agent"], one["bytes_from_agent"]))),
            Text(_rate(rates.transfers.get(one["number"], 0.0)), style="cyan"),
            Text(duration(one["seconds"])),
        )
    return table


def _agents(rows: list[Json], rates: Rates) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("AGENT", "NAME", "PHASE", "CHAN", "↓ /S", "↑ /S", "PULLED", "PUSHED", "WHY"):
        left = name in {"AGENT", "NAME", "PHASE", "WHY"}
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "WHY", overflow="ellipsis")
    for agent in rows:
        to_agent, from_agent = rates.agents.get(agent["agent"], (0.0, 0.0))
        table.add_row(
            cell(agent["agent"]),
            cell(agent["name"]),
            cell(agent["phase"], PHASE_STYLES[agent["phase"]]),
            Text(str(agent["channels"])),
            Text(_rate(to_agent)),
            Text(_rate(from_agent)),
            Text(size(agent["bytes_to_agent"])),
            Text(size(agent["bytes_from_agent"])),
            cell(agent["error"] or ""),
        )
    return table


def _rate(octets: float) -> str:
    return f"{size(int(octets))}/s" if octets >= 1 else "-"
