"""The request in hand, as it becomes a record and a line in the log."""

from dataclasses import dataclass
from typing import Final

import structlog

from tunnelmgr.core.policy import Verdict
from tunnelmgr.core.registry import Action, RegistryRequest
from tunnelmgr.gate.caller import Caller, RequestRecord

_ROUTINE: Final = frozenset({Action.BASE, Action.WELL_KNOWN, Action.PULL, Action.CATALOG})


@dataclass(slots=True)
class Entry:
    """What is known of the current request, for its record."""

    method: str = "-"
    request: RegistryRequest | None = None
    verdict: str = "malformed"
    rule: str = "malformed"

    def judge(self, verdict: Verdict) -> None:
        """Take note of what was decided."""
        self.verdict = "allowed" if verdict.allowed else "refused"
        self.rule = verdict.rule

    def record(self, caller: Caller, *, status: int, sent: int, received: int, took: float) -> RequestRecord:
        """Return the record; `sent` and `received` are bytes to and from the agent."""
        request = self.request
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
        )


def log_request(log: structlog.typing.FilteringBoundLogger, record: RequestRecord) -> None:
    """Write one line: at debug for what agents may read and do all day, at info for pushes, deletes and refusals.

    `log` is bound to the agent and its group, once for all the requests of a channel.
    """
    routine = record.verdict == "allowed" and record.action in _ROUTINE
    (log.debug if routine else log.info)(
        "request",
        action=str(record.action),
        repository=record.repository,
        reference=record.reference,
        verdict=record.verdict,
        status=record.status,
        bytes=record.bytes_to_agent + record.bytes_from_agent,
        took=round(record.took, 4),
    )
