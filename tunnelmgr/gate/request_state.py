"""One request in progress: what is known of it, and how far its response has come."""

import time
from dataclasses import dataclass, field

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import Verdict
from tunnelmgr.errors import GateError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_trace import RequestTrace, Stage


@dataclass(slots=True)
class RequestState:
    """One request in progress, from its first byte to its record.

    `began` is the time of the first byte, by the monotonic clock. `status` is that of the response whose head the agent
    has been sent, 0 before that; `responded_at` is the time of that. `unread` is set if the agent may still be sending
    a body that nothing reads any more. `trace` is None unless the request is traced.
    """

    # The loop's clock is less precise: uvloop counts milliseconds.
    began: float = field(default_factory=time.monotonic)
    method: str = "-"
    request: RegistryRequest | None = None
    verdict: str = "malformed"
    rule: str = "malformed"
    failure: GateError | None = None
    status: int = 0
    keep_alive: bool = True
    unread: bool = False
    responded_at: float | None = None
    trace: RequestTrace | None = None

    def follow(self, trace: RequestTrace | None) -> None:
        """Trace this request, whose head has been read, if `trace` is not None."""
        self.trace = trace
        if trace is not None:
            trace.stages.append((Stage.READ, self.began))
            trace.enter(Stage.DECIDE)

    def enter(self, stage: Stage) -> None:
        """Note that the request enters a stage, if it is traced."""
        if self.trace is not None:
            self.trace.enter(stage)

    @property
    def traceparent(self) -> bytes:
        """The context for the registry, empty if the request is not traced."""
        return b"" if self.trace is None else self.trace.traceparent

    def start_response(self, status: int) -> None:
        """Keep the status of the response that starts now, and the time."""
        self.status = status
        self.responded_at = time.monotonic()
        self.enter(Stage.RESPOND)

    def set_verdict(self, verdict: Verdict) -> None:
        """Keep the verdict for the record; a later one replaces it."""
        self.verdict = "allowed" if verdict.allowed else "refused"
        self.rule = verdict.rule

    def to_record(self, caller: Caller, *, bytes_to_agent: int, bytes_from_agent: int) -> RequestRecord:
        """Return the record of a request that ends now, for the request log."""
        request, failure, now = self.request, self.failure, time.monotonic()
        return RequestRecord(
            caller=caller,
            method=self.method,
            action=request.action if request else "-",
            repository=request.repository if request else "",
            reference=request.reference if request else "",
            verdict=self.verdict,
            rule=self.rule,
            status=int(self.status),
            bytes_to_agent=bytes_to_agent,
            bytes_from_agent=bytes_from_agent,
            took=now - self.began,
            latency=(now if self.responded_at is None else self.responded_at) - self.began,
            error=failure.code if failure else "",
            reason=str(failure) if failure else "",
            trace=self.trace,
        )
