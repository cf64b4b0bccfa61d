"""The requests that the gate serves now. A request costs one entry in a set; nothing is counted until somebody asks."""

from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from tunnelmgr.core.activity import Transfer
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_state import RequestState
from tunnelmgr.gate.traffic import MeteredChannel

_numbers = count(1)


class HasCaller(Protocol):
    """Knows the caller of a channel, whose group may change; `gate/request_handler.py` implements it."""

    caller: Caller


@dataclass(slots=True, eq=False)
class RequestInFlight:
    """A request from its first byte to its record; `sent` and `received` are the channel's bytes before it."""

    handler: HasCaller
    agent: MeteredChannel
    state: RequestState
    sent: int
    received: int
    number: int = field(default_factory=lambda: next(_numbers))

    def transfer(self, now: float) -> Transfer:
        """Return how far it has come."""
        caller, request = self.handler.caller, self.state.request
        return Transfer(
            number=self.number,
            agent=caller.agent,
            group=caller.group,
            forward=caller.forward,
            method=self.state.method,
            action=request.action if request else "-",
            repository=request.repository if request else "",
            reference=request.reference if request else "",
            status=int(self.state.status),
            to_agent=self.agent.to_agent - self.sent,
            from_agent=self.agent.from_agent - self.received,
            seconds=now - self.state.began,
        )
