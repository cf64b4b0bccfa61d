"""One life of one tunnel: dial, bind, probe until something ends it. It never tries twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import floor
from typing import Protocol
from zlib import crc32

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelBound, TunnelDialled, TunnelProbed
from tunnelmgr.core.ports import AgentChannel, EventSink
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.half_open import Ends, reset_half_open
from tunnelmgr.errors import (
    AbusiveAgentError,
    ConnectionLostError,
    ExposedListenerError,
    ListenRefusedError,
    ProbeTimeoutError,
    TunnelError,
)
from tunnelmgr.ssh.client import ChannelRefused, Listener, SshConnection, dial
from tunnelmgr.ssh.login import Login
from tunnelmgr.tunnel.admission import Admission
from tunnelmgr.tunnel.probe import Prover

log = structlog.get_logger(__name__)

FREED = (0.02, 0.05, 0.1, 0.2)
"""Seconds before each look whether the agent's sshd has ended a session whose connection was reset."""
GOODBYE = 2.0
"""Seconds that an orderly close may take."""
BEAT = 0.5
"""Seconds between two moments at which probes begin."""
REOPENED = 20
"""Probes through one stream; the next one is opened anew, which shows that the listener still takes connections."""


class ChannelHandler(Protocol):
    """Serves the channels that agents open through their listeners."""

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Carry one channel that came in through `endpoint` to the forward's target; must not raise."""
        ...


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What all workers share. Times in seconds."""

    login: Login
    probe_interval: float
    max_channels: int
    drain: float
    admission: Admission
    prover: Prover
    channel_handler: ChannelHandler
    events: EventSink

    @property
    def probe_timeout(self) -> float:
        """Return how long a probe may take; a silent drop is found, and mended, within two intervals."""
        return min(10.0, max(1.0, 0.8 * self.probe_interval))


@dataclass(frozen=True, slots=True)
class KeptStream:
    """A stream through a listener, and how many probes it has carried."""

    stream: ForwardedChannel
    asked: int = 1


class Worker:
    """Lives once. `drain` ends it gently, cancelling `run` ends it at once."""

    def __init__(self, opening: OpenTunnel, settings: TunnelSettings, stale: Ends | None = None) -> None:
        """Make a worker; `stale` is the connection for which the agent's sshd may still hold the listeners."""
        self.spec = opening.spec
        self.life = opening.life
        self._settings = settings
        self._permit = settings.admission.permit(opening.precedence)
        self.stale = stale
        self._events = settings.events
        self._asked_to_drain = False
        self._news = asyncio.Event()
        self._kept: dict[Endpoint, KeptStream] = {}
        self._listeners: dict[Endpoint, Listener] = {}
        self._sessions: dict[asyncio.Task[None], ForwardedChannel] = {}  # oldest first
        self._channels = 0
        self._declined = 0
        self._channel_gone = asyncio.Event()
        self._probing = 0
        self._open_for_channels = False

    def drain(self) -> bool:
        """Stop listening, let the channels end until the deadline, then close.

        Returns False, and does nothing, where the tunnel does not stand yet and so has nothing to wait for.
        """
        if self._open_for_channels:
            self._asked_to_drain = True
            self._news.set()
        return self._asked_to_drain

    async def run(self) -> None:
        """Live; return when drained, raise TunnelError when the tunnel failed or was lost."""
        with self._permit:
            connection = await dial(self.spec, self._settings.login, self._permit)
            try:
                connection.when_lost(self._news.set)
                self._events.report(
                    TunnelDialled(
                        self.spec.agent, self.life, connection.address, connection.login_key, connection.host_key
                    )
                )
                await self._hold(connection)
            finally:
                connection.abort()
                if self._listeners:
                    self.stale = connection.ends
                # What listens on the connection refers to this worker.
                self._listeners.clear()

    async def _hold(self, connection: SshConnection) -> None:
        """Keep the tunnel until it is lost or drained; on the way out no session survives."""
        outcome: TunnelError | None = None
        async with asyncio.TaskGroup() as sessions:
            quickening = sessions.create_task(connection.disable_nagle(), name=f"quicken {self.spec.agent}")
            try:
                await self._bind_all(connection, sessions)
                await self._probe_on(connection, sessions)
                await self._finish(connection)
            except TunnelError as ended:  # kept out of the group, which would wrap it
                outcome = AbusiveAgentError() if self._smothered(ended, connection) else ended
            finally:
                self._open_for_channels = False
                quickening.cancel()
                for session in self._sessions:
                    session.cancel()
        if outcome is not None:
            raise outcome

    def _smothered(self, ended: TunnelError, connection: SshConnection) -> bool:
        """Tell whether the probe's answer is late because the agent put too much before it."""
        return isinstance(ended, ProbeTimeoutError) and connection.throttled

    # --- binding ---

    async def _bind_all(self, connection: SshConnection, sessions: asyncio.TaskGroup) -> None:
        for forward in self.spec.forwards:
            for endpoint in forward.listen:
                held = await self._bind(connection, sessions, forward, endpoint)
                if not held and endpoint == forward.listen[0]:
                    held = await self._bind_after_reset(connection, sessions, forward, endpoint)
                if not held and endpoint == forward.listen[0]:
                    raise ListenRefusedError(str(endpoint))
        self._open_for_channels = True
        await self._tell_bound(connection)

    async def _bind_after_reset(
        self, connection: SshConnection, sessions: asyncio.TaskGroup, forward: Forward, endpoint: Endpoint
    ) -> bool:
        """Have the agent end the connection that may hold the listener still, and ask for it again."""
        stale, self.stale = self.stale, None
        if stale is None:
            return False
        await reset_half_open(stale)
        for pause in FREED:
            await asyncio.sleep(pause)
            if await self._bind(connection, sessions, forward, endpoint):
                return True
        return False

    async def _bind(
        self, connection: SshConnection, sessions: asyncio.TaskGroup, forward: Forward, endpoint: Endpoint
    ) -> bool:
        def on_open(channel: ForwardedChannel) -> None:
            if not self._open_for_channels:
                channel.abort()
                return
            serving = self._serve_one(channel, forward, endpoint)
            session = sessions.create_task(channel.scheduled(serving), name=f"channel {self.spec.agent} {endpoint}")
            self._sessions[session] = channel
            session.add_done_callback(self._sessions.pop)

        async with _deadline(self._settings.probe_timeout):
            listener = await connection.listen(endpoint, self._admit, on_open, self._channel_ended)
        if listener is None:
            return False
        if connection.exposed:
            listener.close()
            # The agent must have heard the cancellation before the connection goes; its end would do too.
            await connection.close(GOODBYE)
            raise ExposedListenerError(str(endpoint))
        self._listeners[endpoint] = listener
        return True

    async def _tell_bound(self, connection: SshConnection) -> None:
        wanted = [endpoint for forward in self.spec.forwards for endpoint in forward.listen]
        held = tuple(endpoint for endpoint in wanted if endpoint in self._listeners)
        refused = tuple(endpoint for endpoint in wanted if endpoint not in self._listeners)
        squatted = [str(endpoint) for endpoint in refused if await self._answers(connection, endpoint)]
        self._events.report(TunnelBound(self.spec.agent, self.life, held, refused, tuple(squatted)))

    async def _answers(self, connection: SshConnection, endpoint: Endpoint) -> bool:
        """Tell whether another process on the agent listens where we may not; a host without IPv6 is no matter.

        One that takes no connection is there all the same, and no reason to end the tunnel: it holds the port.
        """
        try:
            async with _deadline(self._settings.probe_timeout):
                (await connection.connect(endpoint)).abort()
        except ConnectionRefusedError:
            return False
        except ProbeTimeoutError:
            return True
        return True

    async def _bind_missing(self, connection: SshConnection, sessions: asyncio.TaskGroup) -> None:
        """Ask again for the addresses that should be held and are not: a stale session may have let go."""
        for forward in self.spec.forwards:
            for endpoint in forward.listen:
                if endpoint not in self._listeners:
                    await self._bind(connection, sessions, forward, endpoint)
        await self._tell_bound(connection)

    # --- channels ---

    def _admit(self) -> None:
        if not self._open_for_channels:
            raise ChannelRefused("the tunnel is not open")
        # Probes have places of their own: an agent that uses all its channels does not lose its tunnel by it. Which
        # channel is a probe's cannot be seen here, so one that took its place is ended again.
        if self._channels >= self._places + self._probing:
            self._declined += 1
            raise ChannelRefused(f"more than {self._settings.max_channels} channels")
        self._channels += 1

    def _channel_ended(self) -> None:
        self._channels -= 1
        self._channel_gone.set()

    @property
    def _places(self) -> int:
        """How many channels there may be: the agent's, and one for each stream that is kept for probes."""
        return self._settings.max_channels + len(self._kept)

    def _shed(self) -> None:
        """End the newest sessions beyond the limit."""
        for session in list(self._sessions)[self._places :]:
            session.cancel()

    def _tell_declined(self) -> None:
        """Log at most one line an interval: how many channels an agent asks for is the agent's to say."""
        if self._declined:
            facts = {"agent": self.spec.agent, "limit": self._settings.max_channels, "declined": self._declined}
            log.warning("too many channels", **facts)
            self._declined = 0

    async def _serve_one(self, channel: ForwardedChannel, forward: Forward, endpoint: Endpoint) -> None:
        try:
            await self._settings.channel_handler.serve_channel(channel, self.spec, forward, endpoint)
        except asyncio.CancelledError as cancelled:
            channel.abort()
            clear_exception_frames(cancelled)
            raise
        finally:
            channel.close()

    # --- probing ---

    async def _probe_on(self, connection: SshConnection, sessions: asyncio.TaskGroup) -> None:
        """Probe at every interval until the tunnel is lost (raises) or asked to drain (returns)."""
        while not self._asked_to_drain:
            await self._probe(connection)
            self._permit.end()
            self._tell_declined()
            if await self._interrupted(connection):
                return
            if len(self._listeners) < sum(len(forward.listen) for forward in self.spec.forwards):
                await self._bind_missing(connection, sessions)

    async def _probe(self, connection: SshConnection) -> None:
        begun = time.monotonic()  # finer than uvloop's, which counts milliseconds
        self._probing = 1
        try:
            async with _deadline(self._settings.probe_timeout):
                for forward in self.spec.forwards:
                    while not await self._probe_one(connection, forward):
                        self._shed()
        finally:
            self._probing = 0
            self._shed()
        self._events.report(TunnelProbed(self.spec.agent, self.life, time.monotonic() - begun))

    async def _probe_one(self, connection: SshConnection, forward: Forward) -> bool:
        """Probe one forward; returns False where the probe may have been declined by ourselves in a crowd."""
        endpoint, declined = forward.listen[0], self._declined
        try:
            if forward.protocol == "registry":
                await self._ask(connection, endpoint)
            else:
                # A raw target cannot prove itself; that the agent's sshd answers is all there is to know.
                (await connection.connect(endpoint)).abort()
        except ConnectionRefusedError as refused:
            raise ConnectionLostError(
                f"the agent's sshd will not connect to its own listener {endpoint} ({refused}): "
                f'its authorized_keys needs permitopen="{endpoint}"'
            ) from refused
        except ConnectionError as ended:
            if connection.lost.is_set() or self._declined == declined:
                raise ConnectionLostError(f"{endpoint} on the agent closed the connection without an answer") from ended
            return False
        return True

    async def _ask(self, connection: SshConnection, endpoint: Endpoint) -> None:
        """Ask through the stream that is kept, or through a new one where it has ended or was used often enough."""
        prover, agent = self._settings.prover, self.spec.agent
        kept = self._kept.pop(endpoint, None)
        if kept is not None and kept.asked < REOPENED:
            with suppress(ConnectionError):
                await prover.probe(kept.stream, agent, endpoint)
                self._kept[endpoint] = KeptStream(kept.stream, kept.asked + 1)
                return
        if kept is not None:
            kept.stream.abort()
        fresh = await connection.connect(endpoint)
        try:
            await prover.probe(fresh, agent, endpoint)
        except BaseException:
            fresh.abort()
            raise
        self._kept[endpoint] = KeptStream(fresh)

    async def _interrupted(self, connection: SshConnection) -> bool:
        """Wait for the next probe's beat; return True when asked to drain, raise when the connection is lost."""
        clock = asyncio.get_running_loop()
        # A bell, not a deadline, which would end each wait by two exceptions: waiting is what a fleet does most.
        bell = clock.call_at(next_beat(self.spec.agent, clock.time(), self._settings.probe_interval), self._news.set)
        try:
            await self._news.wait()
        finally:
            bell.cancel()
            self._news.clear()
        if connection.lost.is_set():
            raise ConnectionLostError(f"the connection was lost: {connection.loss}")
        return self._asked_to_drain

    # --- ending ---

    async def _finish(self, connection: SshConnection) -> None:
        self._open_for_channels = False
        for listener in self._listeners.values():
            listener.close()
        while self._kept:
            self._kept.popitem()[1].stream.abort()
        for channel in self._sessions.values():
            channel.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain):
                # A session is over once all is written; a channel, once the agent's sshd has passed it on.
                while self._channels and not connection.lost.is_set():
                    self._channel_gone.clear()
                    await self._channel_gone.wait()
        await connection.close(GOODBYE)


def next_beat(agent: AgentId, now: float, interval: float) -> float:
    """Return when an agent is probed next, at most an interval from `now`.

    Probes begin on common beats: those that begin together find the code and the kernel warm, and cost half. Which beat
    is an agent's own follows from its id, so that a fleet that came at once is spread over all of them.
    """
    beats = max(1, round(interval / BEAT))
    own = crc32(agent.encode()) % beats * interval / beats
    return own + interval * (floor((now - own) / interval) + 1)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """Raise ProbeTimeoutError where the agent does not answer in time."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as late:
        raise ProbeTimeoutError(seconds) from late
