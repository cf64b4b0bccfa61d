"""Answers the lookups of the trust methods: a scan of the agent for its host key, and the seeds in the world."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.ports import WorldView
from tunnelmgr.core.precedence import precedence_of
from tunnelmgr.core.seed import Seed
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.ssh.host_key_scan import scan_host_certificate, scan_host_key
from tunnelmgr.tunnel.admission import Admission, Permit


@dataclass(frozen=True, slots=True)
class AdmittedScanner:
    """Scans agents with the settings in force; each scan waits for admission, as a tunnel's dial does."""

    configuration: ActiveConfiguration
    controller: WorldView
    admission: Admission

    async def host_key(self, agent: Agent, wanted: Sequence[str] = ()) -> str:
        """Return the host key that an agent presents; with `wanted`, one of the type of these keys."""
        ssh = self.configuration.prepared.config.ssh
        return await scan_host_key(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent), wanted)

    async def certificate(self, agent: Agent) -> bytes:
        """Return the host certificate that an agent presents, as its key blob."""
        ssh = self.configuration.prepared.config.ssh
        return await scan_host_certificate(agent, ssh.connect_timeout, ssh.ciphers, self._permit(agent))

    def _permit(self, agent: Agent) -> Permit:
        return self.admission.permit(precedence_of(self.controller.world, agent.id))


@dataclass(frozen=True, slots=True)
class StoredSeeds:
    """The world's seeds; `wall` is the wall clock, by which `provision` dated them."""

    controller: WorldView
    wall: Callable[[], float]

    def seed(self, id_: str) -> Seed | None:
        """Return a seed that may still prove its agent, None if it is unknown or has expired unclaimed."""
        seed = self.controller.world.seeds.get(id_)
        expired = seed is not None and seed.holder is None and seed.expires < self.wall()
        return None if expired else seed
