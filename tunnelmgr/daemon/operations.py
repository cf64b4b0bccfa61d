"""What the control socket and the metrics ask of the daemon."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tunnelmgr import __version__
from tunnelmgr.config.changes import Preview
from tunnelmgr.controller import Controller
from tunnelmgr.core.activity import Refusal, TrafficSample, Transfer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import NO_CLUSTER
from tunnelmgr.core.events import Event, ReleaseRequested, RetryRequested
from tunnelmgr.core.health import DaemonHealth, FastPathHealth, TrafficCounters
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.core.policies import Explained
from tunnelmgr.core.world import World
from tunnelmgr.daemon.audit_setup import AuditParts
from tunnelmgr.daemon.channel_server import ChannelServer
from tunnelmgr.daemon.membership import Membership
from tunnelmgr.daemon.pull_cache import PullCache
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.daemon.registry_health import RegistryWatch
from tunnelmgr.daemon.reload import Reload
from tunnelmgr.daemon.tracing import Tracing
from tunnelmgr.dataplane.fast_path import fast_path_status


@dataclass(slots=True)
class DaemonOperations:
    """Implements `Operations` of control/server.py and `Telemetry` and `Activity` of core/ with the daemon's parts."""

    controller: Controller
    channels: ChannelServer
    registry: RegistryWatch
    audit: AuditParts
    reloads: Reload
    activity: RecentActivity
    cache: PullCache
    tracing: Tracing = field(default_factory=Tracing)
    started: float = field(default_factory=time.monotonic)

    @property
    def world(self) -> World:
        """The world as it is now."""
        return self.controller.world

    @property
    def traffic(self) -> Mapping[AgentId, TrafficCounters]:
        """Traffic counters by agent."""
        return self.channels.traffic

    def health(self) -> DaemonHealth:
        """Return the daemon's own health."""
        path, shared = fast_path_status(), self.reloads.shared_registry
        return DaemonHealth(
            controller=self.reloads.started_with.name,
            version=__version__,
            uptime_s=time.monotonic() - self.started,
            registry=self.registry.health,
            store_error=self.controller.store_error,
            audit=self.audit.health(),
            fast_path=FastPathHealth(path.active, path.reason),
            sharing=() if shared is None else shared.reports,
            cache=self.cache.health(),
            limits=self.channels.limits(),
            tracing=self.tracing.health(),
            dials=self.reloads.supervisor.settings.admission.counts(),
        )

    def transfers(self) -> list[Transfer]:
        """Return the requests in progress, without probes."""
        now = time.monotonic()
        transfers = [request.transfer(now) for request in self.channels.gate.context.in_flight]
        return [one for one in transfers if one.action != RegistryAction.WELL_KNOWN]

    def refusals(self) -> list[Refusal]:
        """Return the last refusals, newest first."""
        return self.activity.refusals()

    def last_hour(self) -> list[TrafficSample]:
        """Return the samples of the last hour, oldest first."""
        return self.activity.last_hour()

    def report(self, event: Event) -> None:
        """Pass an operator's request to the controller, or to the member of the cluster that holds the agent."""
        membership = self.reloads.membership
        match event:
            case ReleaseRequested() | RetryRequested() if membership is not None and not self.world.holds(event.agent):
                membership.request(event.agent, event)
            case _:
                self.controller.report(event)

    def note_request(self, who: str, uid: int | None, method: str, path: str, status: int) -> None:
        """Audit a request of the API that changes something, with its answer."""
        self.audit.log.note("operator-request", who=who, uid=uid, method=method, path=path, status=status)

    def drain_member(self, member: str, *, on: bool) -> None:
        """Have a member of the cluster hand its agents over, or end that; raises ValueError if there is none."""
        self._cluster().drain(member, on=on)

    def rebalance(self) -> int:
        """Offer agents to the members that should hold them; returns how many, raises ValueError without a cluster."""
        return self._cluster().rebalance()

    def _cluster(self) -> Membership:
        if self.reloads.membership is None:
            raise ValueError(NO_CLUSTER)
        return self.reloads.membership

    def explain(self, agent: AgentId, action: str, repository: str, forward: str) -> Explained:
        """Return what the agent's policy says at a forward, by default the first one; raises ValueError if invalid."""
        return self.reloads.configuration.explain(agent, action, repository, forward)

    async def preview(self, text: str, file: str) -> Preview:
        """Return what a reload of a file with this text would change; raises ConfigError if it is invalid."""
        return await self.reloads.preview(text, file)

    async def reload(self) -> list[str]:
        """Read the configuration again and return remarks; raises ConfigError and changes nothing if it is invalid."""
        return await self.reloads.run()
