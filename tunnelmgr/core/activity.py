"""What agents are doing and have recently done: for the status page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tunnelmgr.core.agent import AgentId


@dataclass(frozen=True, slots=True)
class Transfer:
    """One request in progress: `number` is unique in this process, `seconds` is its age, `status` 0 without a response.

    Bytes are counted since the request began.
    """

    number: int
    agent: AgentId
    group: str
    forward: str
    method: str
    action: str
    repository: str
    reference: str
    status: int
    to_agent: int
    from_agent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused or malformed request of an agent, and how many like it there were between `since` and `at`.

    Repository and reference are those of the last one.
    """

    at: float
    since: float
    count: int
    agent: AgentId
    group: str
    forward: str
    method: str
    action: str
    repository: str
    reference: str
    verdict: str
    rule: str
    status: int


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Bytes carried and requests served in the `seconds` before `at`."""

    at: float
    seconds: float
    to_agent: int
    from_agent: int
    requests: int
    refused: int


class Activity(Protocol):
    """What the status page shows beside the world; `daemon/operations.py` implements it."""

    def transfers(self) -> Sequence[Transfer]:
        """Return the requests in progress."""
        ...

    def refusals(self) -> Sequence[Refusal]:
        """Return the last refusals, newest first."""
        ...

    def last_hour(self) -> Sequence[TrafficSample]:
        """Return the samples of the last hour, oldest first; the last one is not complete yet."""
        ...
