"""Who speaks on a channel, and the record of what was asked there."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent behind a channel, as its tunnel proved it.

    `listener` is the literal address it came in by; `channel` numbers the channels of this controller.
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
    `reference` is a tag, a digest or an upload's id. `took` is in seconds.
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
