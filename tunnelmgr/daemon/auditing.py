"""What goes into the audit log: requests that were authorised or refused, and the steps of tunnels and trust."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunnelmgr.control.audit import AuditLog
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.world import Moment, Record, World
from tunnelmgr.gate.caller import RequestRecord

STEPS = frozenset(
    {"evidence", "dialled", "bound", "probed", "lost", "failed", "closed", "left", "rebuilt", "quarantined", "released"}
)
"""The steps of an agent's story that are audited; the others tell only that it is waited for."""
ACTIONS = frozenset({"pull", "push", "delete", "catalog"})
"""The actions that are audited when they are allowed; every refusal is."""


@dataclass(frozen=True, slots=True)
class Auditor:
    """Puts what happens into the log, with what is known of the agent."""

    log: AuditLog
    world: Callable[[], World]

    def moment(self, record: Record, moment: Moment) -> None:
        """Audit a step of an agent's story."""
        if moment.step in STEPS:
            self.log.note(f"tunnel-{moment.step}", **_identity(record), detail=moment.detail)

    def request(self, request: RequestRecord) -> None:
        """Audit a request that came through the gate."""
        allowed = request.verdict == "allowed"
        if allowed and request.action not in ACTIONS:
            return
        self.log.note(
            f"request-{request.verdict}",
            **self._caller(request.caller.agent),
            channel=request.caller.channel,
            method=request.method,
            action=request.action,
            repository=request.repository or None,
            reference=request.reference or None,
            verdict="allow" if allowed else "refuse",
            rule=request.rule or None,
            status=request.status,
            bytes_to_agent=request.bytes_to_agent,
            bytes_from_agent=request.bytes_from_agent,
            duration_ms=round(request.took * 1000, 1),
        )

    def _caller(self, agent: AgentId) -> dict[str, Any]:
        record = self.world().records.get(agent)
        return {"agent": agent} if record is None else _identity(record)


def _identity(record: Record) -> dict[str, Any]:
    trust = record.trust or record.proved
    return {
        "agent": record.agent.id,
        "incarnation": record.agent.incarnation or None,
        "group": record.agent.group,
        "address": record.agent.addresses[0] if record.agent.addresses else None,
        "trust": trust.method.value if trust else None,
        "key": " ".join(trust.fingerprints) if trust else None,
    }
