"""The request in hand, as it becomes a record."""

from dataclasses import dataclass

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import Verdict
from tunnelmgr.errors import GateError
from tunnelmgr.gate.caller import Caller, RequestRecord


@dataclass(slots=True)
class PendingRecord:
    """What is known of the current request, for its record."""

    method: str = "-"
    request: RegistryRequest | None = None
    verdict: str = "malformed"
    rule: str = "malformed"
    failure: GateError | None = None

    def judge(self, verdict: Verdict) -> None:
        """Take note of what was decided."""
        self.verdict = "allowed" if verdict.allowed else "refused"
        self.rule = verdict.rule

    def record(self, caller: Caller, *, status: int, sent: int, received: int, took: float) -> RequestRecord:
        """Return the record; `sent` and `received` are bytes to and from the agent."""
        request, failure = self.request, self.failure
        return RequestRecord(
            caller=caller,
            method=self.method,
            action=request.action if request else "-",
            repository=request.repository if request else "",
            reference=request.reference if request else "",
            verdict=self.verdict,
            rule=self.rule,
            status=status,
            bytes_to_agent=sent,
            bytes_from_agent=received,
            took=took,
            error=failure.code if failure else "",
            reason=str(failure) if failure else "",
        )
