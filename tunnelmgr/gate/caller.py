"""Who speaks on a channel, the record of what was asked there, and who takes these records."""

from dataclasses import dataclass
from typing import Protocol

from tunnelmgr.core.agent import AgentId


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent behind a channel, as its tunnel proved it.

    `group` is the one in which its last request was judged. `listener` is the literal address it came in by; `channel`
    numbers the channels of this controller.
    """

    agent: AgentId
    name: str
    group: str
    controller: str
    listener: str
    channel: int = 0


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and what became of it, for the audit.

    `verdict` is `allowed`, `refused` or `malformed`; `rule` is what decided. `status` is 0 when no answer was begun.
    `reference` is a tag, a digest or an upload's id. `took` is in seconds. `error` is the code of what went wrong
    on the registry's side, and empty if nothing did; `reason` tells it to a person.
    """

    caller: Caller
    method: str
    action: str
    repository: str
    reference: str
    verdict: str
    rule: str
    status: int
    bytes_to_agent: int
    bytes_from_agent: int
    took: float
    error: str = ""
    reason: str = ""


class RequestLog(Protocol):
    """Takes the record of every request."""

    def record(self, request: RequestRecord) -> None:
        """Take one; returns at once."""
        ...

    async def settle(self, agent: AgentId) -> None:
        """Wait until an agent that has caused many records may cause more; bounded in time."""
        ...


class NoRequestLog:
    """Takes the records and drops them."""

    def record(self, request: RequestRecord) -> None:
        """Drop it."""

    async def settle(self, agent: AgentId) -> None:
        """Return at once."""
