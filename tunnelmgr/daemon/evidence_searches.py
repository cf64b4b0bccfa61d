"""Searches for host key evidence: each in a task of its own, with a permit of the admission if it has to dial."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunnelmgr.controller import Controller
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.precedence import precedence_of
from tunnelmgr.core.reconcile import ExamineKey, Search
from tunnelmgr.core.seed import Seed
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.trust_methods import TrustInputs, methods_of
from tunnelmgr.ssh.host_key_scan import scan_host_certificate, scan_host_key
from tunnelmgr.trust.resolver import Resolver
from tunnelmgr.tunnel.admission import Admission, Permit


@dataclass(slots=True)
class EvidenceSearches:
    """Performs the controller's searches with the trust methods that the configuration names.

    `wall` is the wall clock, by which certificates and seeds are dated.
    """

    tasks: asyncio.TaskGroup
    controller: Controller
    configuration: ActiveConfiguration
    admission: Admission
    wall: Callable[[], float]
    _resolver: Resolver = field(init=False)
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def follow(self) -> None:
        """Use the trust methods of the configuration as it is now."""
        prepared = self.configuration.prepared
        inputs = TrustInputs(self.key_shown_by, self.certificate_shown_by, self.usable_seed, self.wall)
        methods = {source.config.name: methods_of(source, prepared.config, inputs) for source in prepared.sources}
        self._resolver = Resolver(methods, prepared.rules)

    def search(self, action: Search) -> None:
        """Start a search, which ends in an event."""
        report = self.controller.report
        if isinstance(action, ExamineKey):
            search = self._resolver.examine(action.agent, action.keys, self.key_shown_by, report)
        else:
            search = self._resolver.seek(action.agent, action.at_least, report)
        task = self.tasks.create_task(search, name=f"evidence {action.agent.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def stop(self) -> None:
        """Cancel every search."""
        for task in self._running:
            task.cancel()

    async def key_shown_by(self, agent: Agent, wanted: Sequence[str] = ()) -> str:
        """Return the host key that an agent presents; with `wanted`, one of the type of these keys."""
        ssh = self.configuration.prepared.config.ssh
        return await scan_host_key(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent), wanted)

    async def certificate_shown_by(self, agent: Agent) -> bytes:
        """Return the host certificate that an agent presents, as its key blob."""
        ssh = self.configuration.prepared.config.ssh
        return await scan_host_certificate(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent))

    def usable_seed(self, id_: str) -> Seed | None:
        """Return a seed that may still prove its agent; an unclaimed seed that has expired proves none."""
        seed = self.controller.world.seeds.get(id_)
        expired = seed is not None and seed.holder is None and seed.expires < self.wall()
        return None if expired else seed

    def _permit(self, agent: Agent) -> Permit:
        return self.admission.permit(precedence_of(self.controller.world, agent.id))
