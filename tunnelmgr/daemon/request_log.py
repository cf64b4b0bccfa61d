"""The gate's request log: metrics and audit of every request; it also closes the gate if a required audit log fails."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.audit_trail import AuditTrail
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.observability.audit_log import AuditLog
from tunnelmgr.observability.measurements import Measurements, RequestLabels


@dataclass(frozen=True, slots=True)
class AuditedRequests:
    """Measures, shows and audits requests; the gate's `RequestLog`."""

    configuration: ActiveConfiguration
    audit: AuditLog
    trail: AuditTrail
    measurements: Measurements
    activity: RecentActivity

    def record(self, request: RequestRecord) -> None:
        """Measure a request, keep it for the status page if it was refused, and audit it."""
        caller = request.caller
        labels = RequestLabels(caller.group, caller.forward, request.action, request.verdict, request.status)
        self.measurements.record_request(labels, request.latency, request.took)
        self.activity.record(request)
        self.trail.record(request)

    async def throttle(self, agent: AgentId) -> None:
        """Wait until an agent that has caused many entries may cause more."""
        await self.trail.throttle(agent)

    def outage(self) -> str | None:
        """Return why no request may pass: the audit is required and cannot be written. None if requests may pass."""
        if not self.configuration.requires_audit() or self.audit.healthy:
            return None
        return "the audit log cannot be written; repair controller.audit on the registry's machine"
