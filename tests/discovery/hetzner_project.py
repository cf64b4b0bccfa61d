"""What the tests of Hetzner Cloud share: a time of their own, servers by the dozen, and answers in short."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import Snapshot
from tunnelmgr.demo.hetzner import HetznerCloud
from tunnelmgr.discovery.hetzner import HetznerSource

PATIENT = (5.0, 20.0)
Make = Callable[..., HetznerSource]


@dataclass
class Time:
    """A clock that only moves when told to, or slept by."""

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


def launch_many(cloud: HetznerCloud, count: int) -> list[int]:
    """Launch servers that have addresses of their own."""
    return [cloud.launch(f"agent-{at}", f"10.77.{at // 250}.{at % 250 + 1}", {"role": "ci"}) for at in range(count)]


def ids(snapshot: Snapshot) -> list[int]:
    """Return the servers' ids of the agents that are there, sorted."""
    return sorted(int(agent.id.rpartition(":")[2]) for agent in snapshot.agents)


def gone(snapshot: Snapshot) -> list[int]:
    """Return the servers' ids of the agents that are gone, sorted."""
    return sorted(int(id_.rpartition(":")[2]) for id_ in snapshot.gone)


def only(snapshot: Snapshot) -> Agent:
    """Return the one agent of a snapshot."""
    (agent,) = snapshot.agents
    return agent
