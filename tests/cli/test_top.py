"""`top`: rates between two samples, and what is shown of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from tests.control.fake_daemon import FakeDaemon, fleet
from tunnelmgr.cli.top import Rates, Sample, screen
from tunnelmgr.control.views import status_view
from tunnelmgr.core.activity import Transfer
from tunnelmgr.core.agent import AgentId

Run = Callable[..., Result]
BUILDER = AgentId("static:builder-1")
PULL = Transfer(
    number=7,
    agent=BUILDER,
    group="ci",
    forward="registry",
    method="GET",
    action="pull",
    repository="team/app",
    reference="sha256:" + "0" * 64,
    status=200,
    to_agent=5000,
    from_agent=0,
    seconds=4.0,
)


def sample(at: float, agents: dict[str, tuple[int, int]], transfers: list[dict[str, Any]] | None = None) -> Sample:
    """Return a sample with agents that have carried these bytes to and from them."""
    known = [
        {
            "agent": name,
            "name": name,
            "phase": "up" if carried != (0, 0) else "down",
            "present": True,
            "channels": 1,
            "bytes_to_agent": carried[0],
            "bytes_from_agent": carried[1],
            "error": None,
        }
        for name, carried in agents.items()
    ]
    daemon = FakeDaemon()
    return Sample(at, status_view(fleet(), daemon.health()), known, transfers or [])


def transfer(number: int, to_agent: int, seconds: float = 60.0) -> dict[str, Any]:
    """Return a transfer that has sent these bytes."""
    facts = {"agent": "a", "group": "ci", "action": "pull", "repository": "team/app", "reference": "v1"}
    return facts | {"number": number, "bytes_to_agent": to_agent, "bytes_from_agent": 0, "seconds": seconds}


def test_rates_are_what_was_carried_between_two_looks() -> None:
    """Each direction has its rate; an agent or a transfer that is new counts from its beginning."""
    before = sample(10.0, {"a": (1000, 50), "b": (10, 10)}, [transfer(1, 100)])
    now = sample(12.0, {"a": (5000, 250), "c": (300, 0)}, [transfer(1, 700), transfer(2, 900, seconds=1.5)])

    rates = Rates.between(before, now)

    assert rates.agents == {"a": (2000.0, 100.0), "c": (150.0, 0.0)}
    assert (rates.to_agents, rates.from_agents) == (2150.0, 100.0)
    assert rates.transfers == {1: 300.0, 2: 600.0}


def test_counters_that_start_again_are_not_negative() -> None:
    """A new tunnel of the same agent counts from zero."""
    assert Rates.between(sample(0.0, {"a": (9000, 9000)}), sample(1.0, {"a": (40, 0)})).agents == {"a": (40.0, 0.0)}


@pytest.mark.parametrize("height", [1, 24, 200])
def test_the_busiest_come_first_and_as_many_as_fit(height: int) -> None:
    """On a low terminal the fastest are shown; of idle agents, one without a tunnel comes first."""
    agents = {f"agent-{number}": (0, 0) if number == 3 else (number, 0) for number in range(1, 61)}
    before = sample(0.0, agents, [transfer(number, 0) for number in range(60)])
    later = agents | {"agent-40": (10_000_000, 0)}
    now = sample(1.0, later, [transfer(number, number * 1000) for number in range(60)])
    console = Console(width=140, color_system=None, height=height)
    with console.capture() as printed:
        console.print(screen(now, Rates.between(before, now), height))
    lines = [line.split() for line in printed.get().splitlines() if line.strip()]

    assert "60 requests in progress" in printed.get()
    names = [words[0] for words in lines if words[0].startswith("agent-")]
    assert names[:2] == ["agent-40", "agent-3"]
    assert len(lines) <= max(height, 20)
    assert "57.6 KiB/s" in printed.get()


def test_one_look_is_shown_without_a_terminal(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """The transfers in progress and the agents are printed once."""
    daemon.running = [PULL, replace(PULL, number=8, reference="", repository="", action="base")]

    result = run("top", "--interval", "0.2", "--socket", socket)

    assert result.exit_code == 0
    assert "2 requests in progress" in result.stdout
    assert "team/app sha256:000000000000" in result.stdout
    assert "builder-1" in result.stdout


def test_nothing_in_progress_is_said(run: Run, socket: Path) -> None:
    """Without a transfer, the output says so."""
    assert "no transfer in progress" in run("top", "--once", "--interval", "0.2", "--socket", socket).stdout


def test_json_has_transfers_and_agents_with_their_rates(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """A script gets whole bytes a second."""
    daemon.running = [PULL]

    facts = json.loads(run("top", "--interval", "0.2", "--json", "--socket", socket).stdout)

    assert facts["transfers"][0]["number"] == PULL.number
    assert facts["transfers"][0]["bytes_per_s"] == 0
    assert {agent["name"] for agent in facts["agents"]} >= {"builder-1"}
    assert facts["bytes_per_s"] == {"to_agents": 0, "from_agents": 0}
