"""One daemon process, put together and run in one TaskGroup."""

import asyncio
import itertools
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr import __version__
from tunnelmgr.config import ControllerConfig
from tunnelmgr.control.server import ControlServer
from tunnelmgr.controller import Clock, Controller, Performers
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import DrainRequested, Event, MemoryExpired, Reconfigured, Snapshot
from tunnelmgr.core.health import AuditHealth, DaemonHealth, FastPathHealth
from tunnelmgr.core.missing import missing
from tunnelmgr.core.oci import RegistryAction, is_repository_name
from tunnelmgr.core.persistence import restored
from tunnelmgr.core.policy import GroupPolicy, Verdict, judge
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.precedence import precedence_of
from tunnelmgr.core.reconcile import ExamineKey, Search
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.tunnel import Endpoint, Forward, Phase, TunnelSpec
from tunnelmgr.core.world import World
from tunnelmgr.daemon.audit_trail import Auditor
from tunnelmgr.daemon.garbage import collect, spare_the_old
from tunnelmgr.daemon.loop_lag import watch_lag
from tunnelmgr.daemon.prepared import Prepared, prepare
from tunnelmgr.daemon.registry_health import RegistryWatch
from tunnelmgr.daemon.source_watches import Watches
from tunnelmgr.daemon.trust_methods import Looks, methods_of
from tunnelmgr.dataplane.fast_path import fast_path_status
from tunnelmgr.errors import ConfigError, ControlError, TunnelmgrError
from tunnelmgr.gate.caller import Caller, RequestRecord
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.session import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.observability.audit_log import AuditLog
from tunnelmgr.observability.metrics import MetricsServer
from tunnelmgr.observability.systemd import notify, watchdog_interval
from tunnelmgr.ssh.host_key_scan import shown_certificate, shown_key
from tunnelmgr.store.connect import Store, open_store
from tunnelmgr.threads import in_thread
from tunnelmgr.trust.resolve import Resolver
from tunnelmgr.tunnel.admission import Admission, Permit, places_for
from tunnelmgr.tunnel.probe import Prover
from tunnelmgr.tunnel.supervisor import Supervisor
from tunnelmgr.tunnel.worker import TunnelSettings

log = structlog.get_logger(__name__)

MEMORY = 7 * 86400.0
"""Seconds for which an agent that left is remembered, with its quarantine."""
REGISTRY_CHECK = 10.0
"""Seconds between two looks at the registry."""


@dataclass(slots=True)
class Daemon:
    """Everything that runs. What a reload replaces are plain fields; what lives as long as the process is made once."""

    file: Path
    following: Prepared
    store: Store
    tasks: asyncio.TaskGroup
    clock: Clock = field(default_factory=Clock)
    wall: Callable[[], float] = time.time
    started: float = field(default_factory=time.monotonic)
    traffic: dict[AgentId, Traffic] = field(default_factory=dict)
    prover: Prover = field(default_factory=Prover)
    admission: Admission = field(default_factory=lambda: Admission(places_for(descriptors())))
    channels: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    searches: set[asyncio.Task[None]] = field(default_factory=set)
    reloads: set[asyncio.Task[None]] = field(default_factory=set)
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: ControllerConfig = field(init=False)
    audit: AuditLog = field(init=False)
    auditor: Auditor = field(init=False)
    scheduler: AsyncIOScheduler = field(init=False)
    gate: Gate = field(init=False)
    metrics: MetricsServer = field(init=False)
    supervisor: Supervisor = field(init=False)
    controller: Controller = field(init=False)
    watches: Watches = field(init=False)
    registry: RegistryWatch = field(init=False)
    resolver: Resolver = field(init=False)

    def __post_init__(self) -> None:
        """Make the parts and join them."""
        self.begun = self.following.config.controller
        # Bells ring late rather than never, and once rather than many times.
        defaults = {"coalesce": True, "misfire_grace_time": None, "max_instances": 1}
        self.scheduler = AsyncIOScheduler(timezone="UTC", job_defaults=defaults)
        self.audit = AuditLog(self.begun.audit, self.begun.name, self.clock, lambda: self._audit_required)
        self.auditor = Auditor(self.audit, lambda: self.world, self.clock)
        self.gate = Gate(policy=self._policy, proof=self._proof, requests=self, closed=self._closed)
        self.metrics = MetricsServer(self)
        self.supervisor = Supervisor(self.tasks, self._settings(self.following))
        world = restored(self.store.load(), self.clock())
        self.controller = Controller(world, self.store, self.clock, self.auditor)
        self.registry = RegistryWatch(self._forwards)
        self.watches = Watches(self.tasks, self.scheduler, self.report, self._missing)

    # --- what the control socket asks for ---

    @property
    def world(self) -> World:
        """The world as it is."""
        return self.controller.world

    def health(self) -> DaemonHealth:
        """Return what there is to say of this process."""
        uptime = time.monotonic() - self.started
        audit = AuditHealth(self.audit.error, self.audit.lost, self.audit.lost_recently)
        path = FastPathHealth(fast_path_status().active, fast_path_status().reason)
        return DaemonHealth(
            self.begun.name, __version__, uptime, self.registry.facts, self.controller.store_error, audit, path
        )

    def report(self, event: Event) -> None:
        """Hand an event to the controller."""
        self.controller.report(event)

    def explain(self, agent: AgentId, action: str, repository: str) -> Verdict:
        """Return what the agent's policy says; raises ValueError for what is no action or no repository."""
        if not is_repository_name(repository):
            raise ValueError(f"{repository!r} is no name of a repository")
        if action not in {RegistryAction.PULL, RegistryAction.PUSH, RegistryAction.DELETE}:
            raise ValueError(f"{action!r} is none of pull, push and delete")
        return judge(RegistryAction(action), repository, self._policy(agent))

    async def reload(self) -> list[str]:
        """Read the file again and follow it; raises ConfigError, and then nothing has changed.

        Reloads take turns, so that the file as it was read last is the one that is followed. Returns remarks about what
        takes effect at the next start only.
        """
        async with self.reloading:
            fresh = await in_thread(prepare, self.file, self.watches.running())
            remarks = [
                f"controller.{key} has changed and takes effect at the next start"
                for key in ("name", "state", "socket", "metrics", "metrics_public", "audit")
                if getattr(fresh.config.controller, key) != getattr(self.begun, key)
            ]
            self._follow(fresh)
        log.info("configuration read again", file=str(self.file), remarks=remarks)
        return remarks

    # --- life ---

    async def run(self) -> None:
        """Run until drained."""
        # Nothing is watched before all that can be refused is had: what is watched would have to be stopped again.
        control = ControlServer(self, self.begun.socket)
        await self.audit.start()
        await self.registry.look()  # whoever asks first gets an answer, not a guess
        await control.start()
        background: list[asyncio.Task[None]] = []
        try:
            if self.begun.metrics is not None:
                await self._start_metrics(self.begun.metrics)
            self._follow(self.following)
            spare_the_old()
            background = self._start_bells()
            self._heed_signals()
            notify("READY=1", f"STATUS={self._summary()}")
            _log_fast_path()
            log.info("running", controller=self.begun.name, version=__version__, file=str(self.file))
            await self.controller.run(Performers(self.supervisor, self))
        finally:
            notify("STOPPING=1")
            self.watches.stop()
            if self.scheduler.running:
                self.scheduler.shutdown(wait=False)
            for task in (*background, *self.searches, *self.reloads):
                task.cancel()
            await self.metrics.close()
            await control.close()
            await self.auditor.flush()
            self.audit.close()

    async def _start_metrics(self, at: Endpoint) -> None:
        try:
            await self.metrics.start(at)
        except OSError as taken:
            raise ControlError(f"controller.metrics: cannot listen on {at}: {taken.strerror}") from taken

    def _start_bells(self) -> list[asyncio.Task[None]]:
        async def ring() -> None:
            self.registry.bell.set()

        self.scheduler.add_job(ring, "interval", seconds=REGISTRY_CHECK)
        self.scheduler.add_job(self._forget, "interval", hours=1)
        self.scheduler.add_job(self._sign_of_life, "interval", seconds=watchdog_interval() or 10.0)
        self.scheduler.start()
        return [
            self.tasks.create_task(self.registry.run(), name="registry check"),
            self.tasks.create_task(watch_lag(self.metrics.lagged), name="loop lag"),
        ]

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)

    def _stop(self) -> None:
        """Drain at the first signal, end at once at the second."""
        if self.world.draining:
            log.warning("stopping at once")
            for task in asyncio.all_tasks():
                task.cancel()
            return
        log.info("draining; a second signal stops at once", patience=self.following.config.controller.drain)
        self.report(DrainRequested())

    def _reload_soon(self) -> None:
        reload = self.tasks.create_task(self._reload_or_say(), name="reload")
        self.reloads.add(reload)
        reload.add_done_callback(self.reloads.discard)

    async def _reload_or_say(self) -> None:
        try:
            await self.reload()
        except ConfigError as bad:
            log.error("the new configuration is bad; the old one stays", problems=bad.problems)  # noqa: TRY400
        except Exception:  # a bulkhead: a reload that fails in any way must not end the tunnels
            log.exception("reload failed; the old configuration stays")

    # --- bells ---

    async def _forget(self) -> None:
        self.report(MemoryExpired(self.clock() - MEMORY, self.wall()))
        for id_ in [id_ for id_ in self.traffic if id_ not in self.world.records]:
            del self.traffic[id_]
        collect()

    async def _sign_of_life(self) -> None:
        """Tell systemd that the loop turns; an APScheduler job runs in it."""
        notify("WATCHDOG=1", f"STATUS={self._summary()}")

    # --- joints ---

    def _follow(self, prepared: Prepared) -> None:
        """Switch to a configuration; nothing here may fail, so that none is followed in part."""
        self.following = prepared
        self.supervisor.settings = self._settings(prepared)
        looks = Looks(self._key, self._certificate, self.seed, self.wall)
        methods = {source.config.name: methods_of(source, prepared.config, looks) for source in prepared.sources}
        self.resolver = Resolver(methods, prepared.rules)
        self.watches.follow(prepared.sources)
        self.report(Reconfigured(prepared.rules))

    def _forwards(self) -> tuple[Forward, ...]:
        return self.following.rules.forwards

    def _settings(self, prepared: Prepared) -> TunnelSettings:
        ssh = prepared.config.ssh
        return TunnelSettings(
            login=prepared.login,
            probe_interval=ssh.probe_interval,
            max_channels=ssh.max_channels,
            drain=prepared.config.controller.drain,
            admission=self.admission,
            prover=self.prover,
            channel_handler=self,
            events=self,
        )

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Relay the channel, or serve it through the gate; see `ChannelHandler`."""
        traffic = self.traffic.setdefault(spec.agent, Traffic())
        if forward.protocol == "tcp":
            await relay(channel, forward.target, traffic)
            return
        caller = Caller(
            agent=spec.agent,
            name=spec.name,
            group=self._group(spec.agent),
            controller=self.begun.name,
            listener=str(endpoint),
            channel=next(self.channels),
        )
        await self.gate.serve(channel, caller, forward.target, traffic)

    def _group(self, agent: AgentId) -> str:
        """Return the group that the configuration puts an agent into now; none for an agent that is not known."""
        record = self.world.records.get(agent)
        return "" if record is None else self.following.rules.group_of(record.agent)

    def _policy(self, agent: AgentId) -> GroupPolicy:
        """Return the policy of an agent's present group; in a group that is not configured it may do nothing."""
        group = self._group(agent)
        return self.following.policies.get(group) or GroupPolicy.build(group, pull=())

    def _closed(self) -> str | None:
        """Return why the gate lets nothing pass; only where the configuration wants no action without an audit."""
        if not self._audit_required or self.audit.healthy:
            return None
        return "the audit log cannot be written; mend controller.audit on the registry's machine"

    @property
    def _audit_required(self) -> bool:
        return self.following.config.controller.audit_required

    def _proof(self, nonce: str, caller: Caller) -> str:
        return self.prover.proof(nonce, caller.agent, caller.listener)

    # --- the gate's request log ---

    def record(self, request: RequestRecord) -> None:
        """Count a request, and write it down."""
        self.metrics.count(request.caller.group, request.action, request.verdict, request.status)
        self.auditor.record(request)

    async def settle(self, agent: AgentId) -> None:
        """Wait until the agent has paid for what it had us write."""
        await self.auditor.settle(agent)

    # --- searches ---

    def search(self, action: Search) -> None:
        """Search for evidence."""
        if isinstance(action, ExamineKey):
            seeking = self.resolver.examine(action.agent, action.keys, self._key, self.report)
        else:
            seeking = self.resolver.seek(action.agent, action.at_least, self.report)
        search = self.tasks.create_task(seeking, name=f"evidence {action.agent.id}")
        self.searches.add(search)
        search.add_done_callback(self.searches.discard)

    async def _key(self, agent: Agent, wanted: Sequence[str] = ()) -> str:
        """Return the key that an agent shows; with `wanted`, one of the type of these keys."""
        ssh = self.following.config.ssh
        return await shown_key(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent), wanted)

    async def _certificate(self, agent: Agent) -> bytes:
        ssh = self.following.config.ssh
        return await shown_certificate(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent))

    def _permit(self, agent: Agent) -> Permit:
        return self.admission.permit(precedence_of(self.world, agent.id))

    def _missing(self, source: str, listing: Snapshot) -> tuple[Agent, ...]:
        """Return the agents that a source's listing lacks; called from the source's thread."""
        return missing(self.world, source, listing)

    def seed(self, id_: str) -> Seed | None:
        """Return a seed that may still prove its agent; one that nobody took in time proves nobody."""
        seed = self.world.seeds.get(id_)
        expired = seed is not None and seed.holder is None and seed.expires < self.wall()
        return None if expired else seed

    def _summary(self) -> str:
        phases = [status.phase for status in self.world.tunnels.values()]
        return f"{phases.count(Phase.UP)} of {len(phases)} agents up, {phases.count(Phase.QUARANTINED)} quarantined"


def descriptors() -> int:
    """Return how many descriptors this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _log_fast_path() -> None:
    path = fast_path_status()
    if path.active:
        log.info("fast path switched on")
    else:
        log.warning("fast path switched off", reason=path.reason)


async def run(file: Path) -> None:
    """Run a daemon until it is told to stop; raises ConfigError, StoreError or ControlError where it cannot start."""
    prepared = prepare(file)
    store = open_store(prepared.config.controller.state)
    try:
        failure: TunnelmgrError | None = None
        async with asyncio.TaskGroup() as tasks:
            try:
                await Daemon(file, prepared, store, tasks).run()
            except TunnelmgrError as failed:  # kept out of the group, which would wrap it
                failure = failed
        if failure is not None:
            raise failure
    finally:
        store.close()
