"""One request in progress: what is known of it, and how far its response has come."""

import time
from dataclasses import dataclass

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import Verdict
from tunnelmgr.errors import GateError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_record import RequestRecord


@dataclass(slots=True)
class RequestState:
    """One request in progress, from its first byte to its record.

    `status` is that of the response whose head the agent has been sent, 0 before that; `responded_at` is the time of
    that, by the monotonic clock. `unread` is set if the agent may still be sending a body that nothing reads any more.
    """

    method: str = "-"
    request: RegistryRequest | None = None
    verdict: str = "malformed"
    rule: str = "malformed"
    failure: GateError | None = None
    status: int = 0
    keep_alive: bool = True
    unread: bool = False
    responded_at: float | None = None

    def start_response(self, status: int) -> None:
        """Keep the status of the response that starts now, and the time."""
        self.status = status
        self.responded_at = time.monotonic()

    def set_verdict(self, verdict: Verdict) -> None:
        """Keep the verdict for the record; a later one replaces it."""
        self.verdict = "allowed" if verdict.allowed else "refused"
        self.rule = verdict.rule

    def to_record(self, caller: Caller, *, bytes_to_agent: int, bytes_from_agent: int, began: float) -> RequestRecord:
        """Return the record of a request that ends now, for the request log; `began` is by the monotonic clock."""
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
            took=now - began,
            latency=(now if self.responded_at is None else self.responded_at) - began,
            error=failure.code if failure else "",
            reason=str(failure) if failure else "",
        )
