"""The gate's request log: metrics and audit of every request; it also closes the gate if a required audit log fails."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.audit_trail import AuditTrail
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.daemon.request_tracing import RequestTracing
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_trace import RequestTrace
from tunnelmgr.observability.measurements import Measurements, RequestLabels


@dataclass(frozen=True, slots=True)
class AuditedRequests:
    """Measures, shows and audits requests; the gate's `RequestLog`."""

    configuration: ActiveConfiguration
    trail: AuditTrail
    measurements: Measurements
    activity: RecentActivity
    tracing: RequestTracing

    def trace(self, agent: AgentId) -> RequestTrace | None:
        """Return the trace of a request that begins, None if it is not traced."""
        return self.tracing.begin(agent)

    def record(self, request: RequestRecord) -> None:
        """Measure a request, keep it for the status page if it was refused, audit it, and finish its trace."""
        caller = request.caller
        labels = RequestLabels(caller.group, caller.forward, request.action, request.verdict, request.status)
        trace_id = "" if request.trace is None else f"{request.trace.trace_id:032x}"
        self.measurements.record_request(labels, request.latency, request.took, trace_id)
        self.activity.record(request)
        self.trail.record(request)
        self.tracing.record(request)

    async def throttle(self, agent: AgentId) -> None:
        """Wait until an agent that has caused many entries may cause more."""
        await self.trail.throttle(agent)

    def outage(self) -> str | None:
        """Return why no request may pass: the audit is required and cannot be written. None if requests may pass."""
        if not self.configuration.requires_audit() or self.trail.audit.healthy:
            return None
        return "the audit log cannot be written; repair controller.audit on the registry's machine"
