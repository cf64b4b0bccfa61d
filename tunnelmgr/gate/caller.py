"""The agent at the other end of a channel."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent at the other end of a channel, as its tunnel identified it.

    `group` is the group whose policy decided its last request. `listener` is the literal address, with port, that its
    clients connect to, and `forward` the name of its forward; `channel` is the channel's number, unique within this
    controller.
    """

    agent: AgentId
    incarnation: str
    name: str
    group: str
    controller: str
    listener: str
    forward: str
    channel: int = 0
