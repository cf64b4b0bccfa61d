"""Following a configuration: at the start, and again whenever the file is read again."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tunnelmgr.config import Config, ControllerConfig
from tunnelmgr.config.changes import Preview, changes
from tunnelmgr.controller import Controller
from tunnelmgr.core.events import AgentsDiscovered, Reconfigured
from tunnelmgr.core.ports import EventSink
from tunnelmgr.core.preview import effects
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.cluster_checks import shared_rules
from tunnelmgr.daemon.evidence_searches import EvidenceSearches
from tunnelmgr.daemon.membership import Membership
from tunnelmgr.daemon.prepared import Prepared, prepare
from tunnelmgr.daemon.shared_registry import SharedRegistry
from tunnelmgr.daemon.source_watches import SourceWatches
from tunnelmgr.discovery.static import StaticSource
from tunnelmgr.threads import in_thread
from tunnelmgr.tunnel.admission import Admission
from tunnelmgr.tunnel.proof import Prover
from tunnelmgr.tunnel.settings import ChannelHandler, TunnelSettings
from tunnelmgr.tunnel.supervisor import Supervisor

log = structlog.get_logger(__name__)

FIXED = (
    "name",
    "zone",
    "capacity",
    "state",
    "password_file",
    "socket",
    "metrics",
    "metrics_public",
    "metrics_names",
    "metrics_page",
    "audit",
    "audit_key",
    "audit_seal_interval",
)
"""Keys of `[controller]` that take effect at the next start only."""


@dataclass(slots=True)
class Reload:
    """Switches every part to a configuration; `started` is that of the start."""

    file: Path
    started: Config
    configuration: ActiveConfiguration
    controller: Controller
    searches: EvidenceSearches
    supervisor: Supervisor
    sources: SourceWatches
    membership: Membership | None = None
    shared_registry: SharedRegistry | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def started_with(self) -> ControllerConfig:
        """The `[controller]` table of the start."""
        return self.started.controller

    async def run(self) -> list[str]:
        """Read the file again and follow it; raises ConfigError, and then nothing has changed.

        Reloads run one at a time, so that the configuration that was read last is the one that is followed. Returns
        remarks about changes that take effect at the next start only.
        """
        async with self._turn:
            prepared = await in_thread(prepare, self.file, self.sources.running())
            remarks = self._remarks(prepared)
            self.follow(prepared)
        log.info("configuration reloaded", file=str(self.file), remarks=remarks)
        return remarks

    async def preview(self, text: str, file: str) -> Preview:
        """Return what following a configuration would change, and change nothing; raises ConfigError if it is invalid.

        The agents of a source that has changed are known if its configuration names them.
        """
        running = self.sources.running()
        prepared = await in_thread(prepare, Path(file), running, text)
        changed = [one for one in prepared.sources if one is not running.get(one.config.name)]
        named = [one for one in changed if isinstance(one.source, StaticSource)]
        listings = [AgentsDiscovered(one.config.name, await in_thread(one.source.discover)) for one in named]
        agents = effects(self.controller.world, prepared.rules, listings, self.controller.clock())
        return Preview(
            tuple(changes(self.configuration.prepared.config, prepared.config)),
            tuple(agents),
            tuple(self._remarks(prepared)),
        )

    def _remarks(self, prepared: Prepared) -> list[str]:
        remarks = [
            f"controller.{key} has changed and takes effect at the next start"
            for key in FIXED
            if getattr(prepared.config.controller, key) != getattr(self.started_with, key)
        ]
        remarks += [
            f"{table} has changed and takes effect at the next start"
            for table in ("cache", "audit_forward", "api", "tracing")
            if getattr(prepared.config, table) != getattr(self.started, table)
        ]
        return remarks

    def follow(self, prepared: Prepared) -> None:
        """Switch to a configuration; no step here can fail, so no configuration is followed in part."""
        self.configuration.prepared = prepared
        now = self.supervisor.settings
        self.supervisor.settings = tunnel_settings(prepared, now.admission, now.prover, now.channel_handler, now.events)
        self.searches.follow()
        self.sources.follow(prepared.sources)
        self.controller.report(Reconfigured(prepared.rules))
        if self.membership is not None:
            config = prepared.config
            self.membership.follow(shared_rules(config), config.controller.isolation_limit)
        if self.shared_registry is not None:
            self.shared_registry.check_soon()


def tunnel_settings(
    prepared: Prepared, admission: Admission, prover: Prover, channels: ChannelHandler, events: EventSink
) -> TunnelSettings:
    """Return the settings that new workers get under a configuration."""
    ssh = prepared.config.ssh
    return TunnelSettings(
        login=prepared.login,
        probe_interval=ssh.probe_interval,
        max_channels=ssh.max_channels,
        drain=prepared.config.controller.drain,
        admission=admission,
        prover=prover,
        channel_handler=channels,
        events=events,
    )
