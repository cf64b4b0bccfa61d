"""Helpers of the Hetzner tests: a clock, many servers, and short forms of snapshots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.hetzner import HetznerCloud
from tunnelmgr.config import AgentSource
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import AgentsDiscovered, Reconfigured
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.missing_agents import missing_agents
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.world import World
from tunnelmgr.discovery.hetzner import HetznerSource
from tunnelmgr.discovery.polling import listed

PATIENT = (5.0, 20.0)
Make = Callable[..., HetznerSource]


@dataclass
class Time:
    """A clock that moves only if the test or a sleep moves it."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.slept.append(seconds)
        self.now += seconds
        self.on_sleep()


def write(file: Path, content: str) -> Path:
    """Write a file that only its owner can read."""
    file.write_text(content)
    file.chmod(0o600)
    return file


@dataclass
class Polled:
    """A source that is polled as the poller does, with a world that takes the answers."""

    source: AgentSource
    world: World = field(default_factory=World)
    now: float = 1000.0

    def __post_init__(self) -> None:
        """Read the configuration."""
        rules = Rules(trust={self.source.config.name: tuple(self.source.config.trust)})
        self.world = evolve(self.world, Reconfigured(rules), self.now)

    def poll(self) -> Snapshot:
        """Return the next answer, once the world has received it."""
        answer = listed(self.source, self)
        self.world = evolve(self.world, AgentsDiscovered(self.source.config.name, answer), self.now)
        return answer

    def missing_from(self, source: str, listing: Snapshot) -> Sequence[Agent]:
        """Return the agents to ask for by their ids, as the daemon's watches do."""
        return missing_agents(self.world, source, listing)

    def present(self) -> int:
        """Return how many agents are there, as far as the world knows."""
        return sum(record.present for record in self.world.records.values())


def launch_many(cloud: HetznerCloud, count: int) -> list[int]:
    """Launch servers with different addresses."""
    return [cloud.launch(f"agent-{at}", f"10.77.{at // 250}.{at % 250 + 1}", {"role": "ci"}) for at in range(count)]


def ids(snapshot: Snapshot) -> list[int]:
    """Return the server ids of the agents, sorted."""
    return sorted(int(agent.id.rpartition(":")[2]) for agent in snapshot.agents)


def gone(snapshot: Snapshot) -> list[int]:
    """Return the server ids of the agents that are gone, sorted."""
    return sorted(int(id_.rpartition(":")[2]) for id_ in snapshot.gone)


def only(snapshot: Snapshot) -> Agent:
    """Return the only agent of a snapshot."""
    (agent,) = snapshot.agents
    return agent
