"""The listeners of one tunnel: requested from the agent's sshd one by one, and again while any is missing."""

import asyncio
from contextlib import suppress
from typing import Final

from tunnelmgr.core.events import TunnelBound
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.dataplane.half_open import Ends, reset_half_open
from tunnelmgr.errors import (
    ExposedListenerError,
    HeldElsewhereError,
    ListenRefusal,
    ListenRefusedError,
    ProbeTimeoutError,
)
from tunnelmgr.ssh.client import Listener, SshConnection
from tunnelmgr.tunnel.proof import controller_at
from tunnelmgr.tunnel.sessions import ListenerSessions, Sessions
from tunnelmgr.tunnel.settings import TunnelSettings

REBIND_DELAYS: Final = (0.02, 0.05, 0.1, 0.2)
"""Seconds before each new attempt to bind while the agent's sshd ends the session whose connection was reset."""
RIVAL_PATIENCE: Final = 20.0
"""Seconds for which the listener of another member is waited for: it goes once this member has logged in."""
RIVAL_DELAYS: Final = ((1.0, 0.01), (10.0, 0.05), (RIVAL_PATIENCE, 0.2))
"""Seconds between two attempts meanwhile, each with the seconds up to which it is used; the pause an agent sees."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds for an orderly close of the listeners, and of the connection."""


class Listeners:
    """The agent's listeners; `bind` and `bind_missing` report `TunnelBound`."""

    def __init__(
        self,
        opening: OpenTunnel,
        settings: TunnelSettings,
        connection: SshConnection,
        sessions: Sessions,
        stale: Ends | None,
    ) -> None:
        """Make the listeners; an earlier connection, `stale`, may still hold an address."""
        self.stale = stale
        self._opening = opening
        self._forwards = opening.spec.forwards
        self._settings = settings
        self._connection = connection
        self._sessions = sessions
        self._held: dict[Endpoint, Listener] = {}

    @property
    def any_held(self) -> bool:
        """Whether the agent's sshd holds at least one listener."""
        return bool(self._held)

    @property
    def complete(self) -> bool:
        """Whether the agent's sshd holds all listeners."""
        return len(self._held) == sum(len(forward.listen) for forward in self._forwards)

    async def bind(self) -> None:
        """Request every listener, in order; raises ListenRefusedError if the first address of a forward is refused.

        If it is refused and there is a stale connection, that is reset and the address requested again. In a cluster,
        raises HeldElsewhereError if another member holds any address: an agent must not be served by two.
        """
        for forward in self._forwards:
            for endpoint in forward.listen:
                if await self._bind_one(forward, endpoint):
                    continue
                if endpoint != forward.listen[0]:
                    await self._bind_further(forward, endpoint)
                    continue
                if await self._bind_after_reset(forward, endpoint) or await self._bind_after_rival(forward, endpoint):
                    continue
                if self._opening.rival and self._connection.listen_refusal is ListenRefusal.UNKNOWN:
                    raise HeldElsewhereError(str(endpoint), self._opening.rival)
                raise ListenRefusedError(str(endpoint), self._connection.listen_refusal)

    async def bind_missing(self) -> None:
        """Request the refused addresses again: a stale session may have released them."""
        for forward in self._forwards:
            for endpoint in forward.listen:
                if endpoint not in self._held:
                    await self._bind_one(forward, endpoint)
        await self.report()

    async def report(self) -> None:
        """Report which addresses are held, which are refused, and where another process answers."""
        wanted = [endpoint for forward in self._forwards for endpoint in forward.listen]
        held = tuple(endpoint for endpoint in wanted if endpoint in self._held)
        refused = tuple(endpoint for endpoint in wanted if endpoint not in self._held)
        conflicts = [str(endpoint) for endpoint in refused if await self._is_conflict(endpoint)]
        spec, life = self._opening.spec, self._opening.life
        self._settings.events.report(TunnelBound(spec.agent, life, held, refused, tuple(conflicts)))

    async def close(self) -> None:
        """Stop listening; open channels continue.

        Until the agent's sshd has confirmed this, it may have accepted connections whose channels are to be served.
        """
        for listener in self._held.values():
            listener.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for listener in self._held.values():
                    await listener.closed()

    def forget(self) -> None:
        """Drop the references to the listeners, whose owner refers to the tunnel: no cycle may outlive it."""
        self._held.clear()

    async def _bind_after_reset(self, forward: Forward, endpoint: Endpoint) -> bool:
        """Reset the stale connection, which may hold the address, and request the address again.

        If another member may hold it instead, that is waited for in shorter intervals.
        """
        stale, self.stale = self.stale, None
        if stale is None:
            return False
        await reset_half_open(stale)
        for delay in () if self._opening.rival else REBIND_DELAYS:
            await asyncio.sleep(delay)
            if await self._bind_one(forward, endpoint):
                return True
        return False

    async def _bind_after_rival(self, forward: Forward, endpoint: Endpoint) -> bool:
        """Ask for the address until the member that listens there lets it go, or patience ends."""
        if not self._opening.rival or self._connection.listen_refusal is not ListenRefusal.UNKNOWN:
            return False
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (waited := loop.time() - began) < RIVAL_PATIENCE and not self._connection.lost.is_set():
            await asyncio.sleep(next(delay for until, delay in RIVAL_DELAYS if waited < until))
            if await self._bind_one(forward, endpoint):
                return True
        return False

    async def _bind_further(self, forward: Forward, endpoint: Endpoint) -> None:
        """Request a refused address again as long as the other member answers there; it is about to let it go."""
        if not self._opening.rival or forward.protocol != "registry":
            return
        for delay in REBIND_DELAYS:
            there = await self._is_rivals(endpoint)
            if await self._bind_one(forward, endpoint) or not there:
                return
            await asyncio.sleep(delay)
        raise HeldElsewhereError(str(endpoint), self._opening.rival)

    async def _is_rivals(self, endpoint: Endpoint) -> bool:
        """Return whether a refused address answers as the other member."""
        try:
            with self._settings.probe_deadline():
                stream = await self._connection.connect(endpoint)
                try:
                    return await controller_at(stream, endpoint) == self._opening.rival
                finally:
                    stream.abort()
        except (ConnectionError, ProbeTimeoutError):
            return False

    async def _bind_one(self, forward: Forward, endpoint: Endpoint) -> bool:
        with self._settings.probe_deadline():
            owner = ListenerSessions(self._sessions, forward, endpoint)
            listener = await self._connection.listen(endpoint, owner)
        if listener is None:
            return False
        if self._connection.exposed:
            listener.close()
            # The agent must receive the cancellation before the connection closes, or else the end of the connection.
            await self._connection.close(CLOSE_TIMEOUT)
            raise ExposedListenerError(str(endpoint), self._opening.agent)
        self._held[endpoint] = listener
        return True

    async def _is_conflict(self, endpoint: Endpoint) -> bool:
        """Return whether another process on the agent listens on a refused address; without IPv6, none can.

        A process that accepts no connection holds the port too; that is not a reason to end the tunnel.
        """
        try:
            with self._settings.probe_deadline():
                (await self._connection.connect(endpoint)).abort()
        except ConnectionRefusedError:
            return False
        except ProbeTimeoutError:
            return True
        return True
