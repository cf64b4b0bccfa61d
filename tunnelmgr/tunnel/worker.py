"""One life of one tunnel: dial, bind, then probe until something ends it. A worker never retries."""

import asyncio
import math
from contextlib import suppress
from zlib import crc32

from tunnelmgr.core.events import LoginKeyTested, TunnelDialled
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import (
    AbusiveAgentError,
    ConnectionLostError,
    KeyTooPowerfulError,
    ProbeTimeoutError,
    TunnelError,
)
from tunnelmgr.ssh.client import SshConnection, dial
from tunnelmgr.tunnel.listeners import CLOSE_TIMEOUT, Listeners
from tunnelmgr.tunnel.prober import Prober, next_probe_time
from tunnelmgr.tunnel.sessions import Sessions
from tunnelmgr.tunnel.settings import TunnelSettings

KEY_TEST_DELAY, KEY_TEST_SPREAD = 2.0, 8.0
"""Seconds after which what the login key could do is tried at the earliest, and over which agents are spread."""


class Worker:
    """Holds one tunnel. `drain` ends it in an orderly way; cancelling `run` ends it at once."""

    def __init__(self, opening: OpenTunnel, settings: TunnelSettings, stale: Ends | None = None) -> None:
        """Make a worker; `stale` is a lost connection for which the agent's sshd may still hold the listeners."""
        self.spec = opening.spec
        self.life = opening.life
        self.stale = stale
        self._opening = opening
        self._settings = settings
        self._permit = settings.admission.permit(opening.precedence)
        self._sessions: Sessions | None = None
        self._drain_requested = False
        self._drain_limit = math.inf
        self._wake_up = asyncio.Event()

    def finish_transfers(self) -> list[ForwardedChannel]:
        """End each channel on which a request is in progress once it has ended; returns these channels."""
        return [] if self._sessions is None else self._sessions.finish_transfers()

    def drain(self, limit: float = math.inf) -> bool:
        """Stop listening, let the channels end within the settings' time and `limit` seconds, then close.

        Returns False, and does nothing, if the tunnel is not up yet and so has nothing to finish.
        """
        if self._sessions is not None and self._sessions.open:
            self._drain_requested, self._drain_limit = True, limit
            self._wake_up.set()
        return self._drain_requested

    async def run(self) -> None:
        """Run the tunnel; returns when drained, raises TunnelError if the tunnel failed or was lost."""
        with self._permit:
            connection = await dial(self.spec, self._settings.login, self._permit)
            try:
                connection.notify_lost(self)
                self._settings.events.report(
                    TunnelDialled(
                        self.spec.agent,
                        self.life,
                        connection.address,
                        connection.login_key,
                        connection.host_key,
                        took=self._permit.elapsed(),
                    )
                )
                await self._hold(connection)
            finally:
                connection.abort()
                self._sessions = None

    def connection_lost(self) -> None:
        """Wake up: the connection is lost."""
        self._wake_up.set()

    async def _hold(self, connection: SshConnection) -> None:
        """Keep the tunnel until it is lost or drained; at the end, end all sessions."""
        outcome: TunnelError | None = None
        async with asyncio.TaskGroup() as tasks:
            sessions = self._sessions = Sessions(self.spec, self._settings, tasks)
            listeners = Listeners(self._opening, self._settings, connection, sessions, self.stale)
            prober = Prober(self._opening, self._settings, connection, sessions)
            beside: list[asyncio.Task[object]] = [
                tasks.create_task(connection.disable_nagle(), name=f"disable Nagle {self.spec.agent}")
            ]
            try:
                if self.spec.restricted:
                    await self._require_restricted_key(connection)
                await listeners.bind()
                sessions.open = True
                await listeners.report()
                if self._opening.tests_key and not self.spec.restricted:
                    beside.append(tasks.create_task(self._test_key(connection), name=f"test key {self.spec.agent}"))
                await self._probe_until_drained(connection, listeners, prober)
                await self._finish(connection, listeners, prober)
            except TunnelError as ended:  # kept out of the group, which would wrap it
                outcome = AbusiveAgentError() if _is_flooded(ended, connection) else ended
            finally:
                sessions.cancel()
                for task in beside:
                    task.cancel()
                self.stale = connection.ends if listeners.any_held else listeners.stale
                listeners.forget()
        if outcome is not None:
            raise outcome

    async def _require_restricted_key(self, connection: SshConnection) -> None:
        """Report what the login key could do; raises KeyTooPowerfulError if that is more than a tunnel needs."""
        excess = await connection.excess()
        self._settings.events.report(LoginKeyTested(self.spec.agent, self.life, excess))
        if excess:
            raise KeyTooPowerfulError(excess)

    async def _test_key(self, connection: SshConnection) -> None:
        """Report what the login key could do; without an answer, it is tried again in the next life.

        It is not urgent: a fleet that appears at once is up first.
        """
        await asyncio.sleep(KEY_TEST_DELAY + crc32(self.spec.agent.encode()) % 1000 / 1000 * KEY_TEST_SPREAD)
        with suppress(TunnelError):
            excess = await connection.excess()
            self._settings.events.report(LoginKeyTested(self.spec.agent, self.life, excess))

    async def _probe_until_drained(self, connection: SshConnection, listeners: Listeners, prober: Prober) -> None:
        """Probe at every interval until the tunnel is lost (raises) or a drain is requested (returns)."""
        while not self._drain_requested:
            await prober.probe()
            self._permit.end()
            if self._sessions is not None:
                self._sessions.log_declined()
            await self._wait_for_probe_time()
            if connection.lost.is_set():
                raise ConnectionLostError(f"the connection was lost: {connection.loss}")
            if not self._drain_requested and not listeners.complete:
                await listeners.bind_missing()

    async def _wait_for_probe_time(self) -> None:
        """Wait until the next probe is due, the connection is lost, or a drain is requested."""
        loop = asyncio.get_running_loop()
        # A timer, not a timeout, which would end each wait by two exceptions: a fleet spends its time in this wait.
        due = next_probe_time(self.spec.agent, loop.time(), self._settings.probe_interval)
        timer = loop.call_at(due, self._wake_up.set)
        try:
            await self._wake_up.wait()
        finally:
            timer.cancel()
            self._wake_up.clear()

    async def _finish(self, connection: SshConnection, listeners: Listeners, prober: Prober) -> None:
        """Drain: stop listening, and let what is open finish."""
        prober.close()
        await listeners.close()
        if self._sessions is not None:
            self._sessions.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._settings.drain, self._drain_limit)):
                    await self._sessions.all_closed(connection.lost)
        lost = connection.lost.is_set()
        if await connection.close(CLOSE_TIMEOUT) and not lost:
            listeners.forget()  # they are gone, so that nothing of this connection is stale


def _is_flooded(ended: TunnelError, connection: SshConnection) -> bool:
    """Return whether the probe's answer is late because the agent flooded the connection."""
    return isinstance(ended, ProbeTimeoutError) and connection.throttled
