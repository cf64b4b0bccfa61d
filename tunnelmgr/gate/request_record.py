"""The record of each request, and the protocol by which the daemon takes these records."""

from dataclasses import dataclass
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_trace import RequestTrace


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and its outcome, for the audit log.

    `verdict` is `allowed`, `refused` or `malformed`; `rule` is the rule that decided. `status` is 0 if no response was
    started. `reference` is a tag, a digest or an upload's id. `took` are the seconds from the request's
    first byte to the end of the response, `latency` those to its start. `error` is the code of a failure on the
    registry's side, empty if there was none; `reason` is its message. `trace` is None unless the request was traced.
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
    latency: float = 0.0
    trace: RequestTrace | None = None


class RequestLog(Protocol):
    """Takes the record of every request; `daemon/request_log.py` implements it."""

    def trace(self, agent: AgentId) -> RequestTrace | None:
        """Return the trace for a request that begins, None if it is not traced; a record brings it back."""
        ...

    def record(self, request: RequestRecord) -> None:
        """Take one record; returns at once."""
        ...

    async def throttle(self, agent: AgentId) -> None:
        """Wait until an agent that has caused many records may cause more; bounded in time."""
        ...

    def outage(self) -> str | None:
        """Return why records that the configuration requires cannot be written now, None if they can.

        During an outage, the gate answers every request that the policy allows with 503.
        """
        ...


class NoRequestLog:
    """A request log that drops every record."""

    def trace(self, agent: AgentId) -> None:
        """Trace nothing."""

    def record(self, request: RequestRecord) -> None:
        """Drop the record."""

    async def throttle(self, agent: AgentId) -> None:
        """Return at once."""

    def outage(self) -> str | None:
        """Return None."""
        return None
