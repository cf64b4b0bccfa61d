"""One daemon process: its parts, made in the order in which they handle an agent, and run in one TaskGroup.

configuration ─▶ controller ─▶ trust ─▶ tunnels ─▶ gate ─▶ registry
"""

import asyncio
import resource
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from tunnelmgr import __version__
from tunnelmgr.controller import Clock, Controller, Performers
from tunnelmgr.core.persistence import restored
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.agent_news import AgentNews
from tunnelmgr.daemon.audit_setup import make_audit
from tunnelmgr.daemon.audit_trail import AuditTrail
from tunnelmgr.daemon.channel_server import ChannelServer
from tunnelmgr.daemon.evidence_searches import EvidenceSearches
from tunnelmgr.daemon.garbage import disable_full_collections
from tunnelmgr.daemon.housekeeping import Housekeeping, make_scheduler
from tunnelmgr.daemon.interfaces import Interfaces
from tunnelmgr.daemon.measured_events import MeasuredEvents
from tunnelmgr.daemon.membership import make_membership
from tunnelmgr.daemon.operations import DaemonOperations
from tunnelmgr.daemon.prepared import Prepared, prepare
from tunnelmgr.daemon.pull_cache import PullCache
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.daemon.registry_health import RegistryWatch
from tunnelmgr.daemon.reload import Reload, tunnel_settings
from tunnelmgr.daemon.request_log import AuditedRequests
from tunnelmgr.daemon.shared_registry import make_shared_registry
from tunnelmgr.daemon.signals import SignalHandler
from tunnelmgr.daemon.source_watches import MissingAgents, SourceWatches
from tunnelmgr.daemon.tracing import make_tracing
from tunnelmgr.daemon.trust_lookups import AdmittedScanner, StoredSeeds
from tunnelmgr.daemon.trust_methods import TrustInputs
from tunnelmgr.dataplane.fast_path import fast_path_status
from tunnelmgr.errors import TunnelmgrError
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.uploads import UploadProofs
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.observability.systemd import notify
from tunnelmgr.store.connect import Store, open_store
from tunnelmgr.tunnel.admission import Admission, places_for
from tunnelmgr.tunnel.proof import Prover
from tunnelmgr.tunnel.supervisor import Supervisor

log = structlog.get_logger(__name__)


class Daemon:
    """All parts of one process. `wall` is the clock by which certificates and seeds expire."""

    def __init__(
        self,
        file: Path,
        prepared: Prepared,
        store: Store,
        tasks: asyncio.TaskGroup,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tasks, self._prepared, settings = tasks, prepared, prepared.config.controller
        stored, clock, scheduler = store.load(), Clock(), make_scheduler()

        self.controller = Controller(restored(stored, clock()), store, clock)
        configuration = ActiveConfiguration(prepared, self.controller)
        self.membership = member = make_membership(settings, self.controller)
        events = member or self.controller
        sources = SourceWatches(tasks, scheduler, events, MissingAgents(self.controller))
        admission = Admission(places_for(file_descriptor_limit()))
        scanner, seeds = AdmittedScanner(configuration, self.controller, admission), StoredSeeds(self.controller, wall)
        self.searches = EvidenceSearches(tasks, self.controller, configuration, TrustInputs(scanner, seeds, wall))

        self.audit = make_audit(prepared.config, clock, configuration.requires_audit)
        self.trail = AuditTrail(self.audit.log, self.controller, clock)
        self.registry, metrics, activity = RegistryWatch(configuration), Metrics(), RecentActivity(clock)
        self.tracing = make_tracing(prepared.config)
        requests = AuditedRequests(configuration, self.trail, metrics.measurements, activity, self.tracing.requests)
        cache, prover = PullCache.make(prepared.config.cache), Prover()
        gate = make_gate(cache, configuration, prover, UploadProofs(stored.secret), requests)
        channels = ChannelServer(configuration, gate, settings.name, activity.traffic)
        reports = self.tracing.watch(MeasuredEvents(events, self.controller, metrics.measurements, clock))
        self.supervisor = Supervisor(tasks, tunnel_settings(prepared, admission, prover, channels, reports))

        shared = make_shared_registry(settings, self.controller, configuration, clock)
        parts = (configuration, self.controller, self.searches, self.supervisor, sources, member, shared)
        self.reload = Reload(file, prepared.config, *parts)
        served = (channels, self.registry, self.audit, self.reload, activity, cache, self.tracing)
        operations = DaemonOperations(self.controller, *served)
        self.interfaces = Interfaces.make(operations, metrics, clock, wall)
        self.signals = SignalHandler(tasks, self.controller, self.reload, self.supervisor)
        self.housekeeping = Housekeeping(scheduler, self.controller, self.registry, metrics, activity, clock, wall)

    async def run(self) -> None:
        """Run until drained; raises ControlError if the socket or the metrics' address cannot be opened."""
        # What can fail comes before the sources are polled, which would have to be stopped again.
        await self.audit.start()
        await self.registry.check()  # so that the first request for status has a result
        await self.interfaces.open_socket()
        background: list[asyncio.Task[None]] = []
        try:
            await self.interfaces.open_addresses()
            if self.membership is not None:
                await self.membership.join(self.reload.sources)
            self.reload.follow(self._prepared)
            disable_full_collections()
            self.housekeeping.scheduler.add_job(self.interfaces.renew, "interval", minutes=1)
            background = self.housekeeping.start(self._tasks)
            if self.membership is not None:
                background.append(self._tasks.create_task(self.membership.run(self.reload.sources), name="cluster"))
            if (shared := self.reload.shared_registry) is not None:
                background.append(self._tasks.create_task(shared.run(), name="shared registry"))
            self.signals.install()
            notify("READY=1", f"STATUS={self.housekeeping.summary()}")
            self._log_start()
            news = AgentNews(self.trail, self.interfaces.events)
            await self.controller.run(Performers(self.supervisor, self.searches), news)
        finally:
            notify("STOPPING=1")
            await self._stop(background)

    def _log_start(self) -> None:
        path = fast_path_status()
        if path.active:
            log.info("fast path switched on")
        else:
            log.warning("fast path switched off", reason=path.reason)
        name = self.reload.started_with.name
        log.info("daemon started", controller=name, version=__version__, file=str(self.reload.file))

    async def _stop(self, background: list[asyncio.Task[None]]) -> None:
        self.reload.sources.stop()
        if self.housekeeping.scheduler.running:
            self.housekeeping.scheduler.shutdown(wait=False)
        self.searches.stop()
        self.signals.stop()
        if self.membership is not None:
            await self.membership.leave()
        for task in background:
            task.cancel()
        await self.interfaces.close()
        await self.trail.flush()
        self.audit.close()
        self.tracing.close()


def make_gate(
    cache: PullCache, policies: ActiveConfiguration, prover: Prover, uploads: UploadProofs, requests: AuditedRequests
) -> Gate:
    """Return the gate of all tunnels."""
    context = GateContext(
        policies=policies,
        proofs=prover,
        uploads=uploads,
        requests=requests,
        shared=cache.shared,
        holdings=cache.holdings,
        cached_pulls=cache.pulls,
    )
    return Gate(context)


def file_descriptor_limit() -> int:
    """Return how many file descriptors this process may open (`getrlimit(2)`)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


async def run(file: Path) -> None:
    """Run a daemon until it is told to stop; raises ConfigError, StoreError or ControlError if it cannot start."""
    prepared = prepare(file)
    settings = prepared.config.controller
    store = open_store(settings.state, settings.name, settings.password_file)
    try:
        failure: TunnelmgrError | None = None
        async with asyncio.TaskGroup() as tasks:
            try:
                await Daemon(file, prepared, store, tasks, wall=store.wall).run()
            except TunnelmgrError as failed:  # kept out of the group, which would wrap it
                failure = failed
        if failure is not None:
            raise failure
    finally:
        store.close()
