"""Probes of one tunnel: a request through each forward's first listener, at fixed times."""

import time
from contextlib import suppress
from dataclasses import dataclass
from math import floor
from typing import Final
from zlib import crc32

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelProbed
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.errors import ConnectionLostError
from tunnelmgr.ssh.client import SshConnection
from tunnelmgr.tunnel.sessions import Sessions
from tunnelmgr.tunnel.settings import TunnelSettings

PROBE_GRID: Final = 0.5
"""Seconds between two times at which probes begin; see `next_probe_time`."""
PROBES_PER_STREAM: Final = 20
"""Probes through one stream. Then a new one is opened, which shows that the listener still accepts connections."""


@dataclass(frozen=True, slots=True)
class ProbeStream:
    """A stream through a listener, and the number of probes that it has carried."""

    channel: ForwardedChannel
    probes: int = 1


class Prober:
    """Probes every forward of a tunnel, and keeps the streams for the next probe."""

    def __init__(
        self, opening: OpenTunnel, settings: TunnelSettings, connection: SshConnection, sessions: Sessions
    ) -> None:
        self._opening = opening
        self._settings = settings
        self._connection = connection
        self._sessions = sessions
        self._streams: dict[Endpoint, ProbeStream] = {}

    async def probe(self) -> None:
        """Probe every forward once, and report `TunnelProbed`.

        Raises ProbeTimeoutError, ImpostorListenerError, or ConnectionLostError.
        """
        began = time.monotonic()  # finer than uvloop's clock, which counts milliseconds
        self._sessions.probing = True
        try:
            with self._settings.probe_deadline():
                for forward in self._opening.spec.forwards:
                    while not await self._probe_forward(forward):
                        self._sessions.shed()
        finally:
            self._sessions.probing = False
            self._sessions.shed()
        spec, life = self._opening.spec, self._opening.life
        self._settings.events.report(TunnelProbed(spec.agent, life, time.monotonic() - began))

    def close(self) -> None:
        """Close the streams that are kept."""
        while self._streams:
            self._streams.popitem()[1].channel.abort()
        self._sessions.probe_streams = 0

    async def _probe_forward(self, forward: Forward) -> bool:
        """Probe one forward; returns False if this side may have declined the probe's channel because of the limit."""
        endpoint, declined = forward.listen[0], self._sessions.declined
        try:
            if forward.protocol == "registry":
                await self._probe_registry(endpoint)
            else:
                # A raw target cannot prove itself; a connection shows at least that the agent's sshd answers.
                (await self._connection.connect(endpoint)).abort()
        except ConnectionRefusedError as refused:
            raise ConnectionLostError(
                f"the agent's sshd refused to connect to its own listener {endpoint}: {refused}. "
                f'Add permitopen="{endpoint}" to the key\'s line in authorized_keys (`tunnelmgr init --print '
                "authorized-keys` prints it), and check that sshd_config has `AllowTcpForwarding yes`"
            ) from refused
        except ConnectionError as ended:
            if self._connection.lost.is_set() or self._sessions.declined == declined:
                raise ConnectionLostError(f"{endpoint} on the agent closed the connection without an answer") from ended
            return False
        return True

    async def _probe_registry(self, endpoint: Endpoint) -> None:
        """Probe through the stream that is kept, or through a new one if it has ended or carried enough probes."""
        prover, agent = self._settings.prover, self._opening.spec.agent
        kept = self._take(endpoint)
        if kept is not None and kept.probes < PROBES_PER_STREAM:
            with suppress(ConnectionError):
                await prover.probe_arrival(kept.channel, agent, endpoint)
                self._keep(endpoint, ProbeStream(kept.channel, kept.probes + 1))
                return
        if kept is not None:
            kept.channel.abort()
        fresh = await self._connection.connect(endpoint)
        try:
            await prover.probe(fresh, agent, endpoint)
        except BaseException:
            fresh.abort()
            raise
        self._keep(endpoint, ProbeStream(fresh))

    def _take(self, endpoint: Endpoint) -> ProbeStream | None:
        kept = self._streams.pop(endpoint, None)
        self._sessions.probe_streams = len(self._streams)
        return kept

    def _keep(self, endpoint: Endpoint, stream: ProbeStream) -> None:
        self._streams[endpoint] = stream
        self._sessions.probe_streams = len(self._streams)


def next_probe_time(agent: AgentId, now: float, interval: float) -> float:
    """Return when an agent is probed next, at most an interval from `now`.

    Probes begin on a common grid: those that begin together find code and kernel caches warm, and cost half. An agent's
    place on the grid follows from its id, so that a fleet that came up at once is spread over the whole interval.
    """
    slots = max(1, round(interval / PROBE_GRID))
    offset = crc32(agent.encode()) % slots * interval / slots
    return offset + interval * (floor((now - offset) / interval) + 1)
