"""What is new about agents goes to the audit log and to the clients of `/v1/events`."""

from dataclasses import dataclass

from tunnelmgr.control.event_log import EventLog
from tunnelmgr.core.tunnel import Phase, TunnelStatus
from tunnelmgr.core.world import HistoryEntry, Record
from tunnelmgr.daemon.audit_trail import AuditTrail


@dataclass(frozen=True, slots=True)
class AgentNews:
    """The controller's `AgentListener`."""

    trail: AuditTrail
    events: EventLog

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Audit a step and show it."""
        self.trail.history_grew(record, entry)
        self.events.history_grew(record, entry)

    def phase_changed(self, record: Record, was: Phase | None, status: TunnelStatus | None) -> None:
        """Show a change of phase; the audit log has the steps that led to it."""
        self.events.phase_changed(record, was, status)
