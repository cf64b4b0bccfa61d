"""The channels of one tunnel: how many there may be, and the task that serves each."""

import asyncio
from dataclasses import dataclass

import structlog

from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.ssh.client import ChannelRefused
from tunnelmgr.tunnel.settings import TunnelSettings

log = structlog.get_logger(__name__)


class Sessions:
    """Admits channels while `open`, and serves each in a task of `tasks`."""

    def __init__(self, spec: TunnelSpec, settings: TunnelSettings, tasks: asyncio.TaskGroup) -> None:
        self._spec = spec
        self._settings = settings
        self._tasks = tasks
        self._by_task: dict[asyncio.Task[None], ForwardedChannel] = {}  # oldest first
        self._channels = 0
        self._channel_closed = asyncio.Event()
        self._declined_logged = 0
        self.open = False
        """Whether channels are admitted and served."""
        self._draining = False
        self.probe_streams = 0
        """Channels that the prober keeps open, which do not count towards the limit."""
        self.probing = False
        """Whether the prober may be opening a channel."""
        self.declined = 0
        """Channels that were declined because of the limit."""

    def admit(self) -> None:
        """Count one more channel; raises ChannelRefused beyond the limit.

        A probe's channel does not count, so that an agent that uses all its channels does not lose its tunnel. Which
        channel is a probe's is not known yet, so another one may take its place, which `shed` ends again. A session
        whose channel has closed counts as long as it runs, for example while it waits for a turn in its group's limits.
        """
        if not self.open:
            raise ChannelRefused("the tunnel is not open")
        if max(self._channels, len(self._by_task)) >= self._limit + self.probing:
            self.declined += 1
            raise ChannelRefused(f"more than {self._settings.max_channels} channels")
        self._channels += 1

    def serve(self, channel: ForwardedChannel, forward: Forward, endpoint: Endpoint) -> None:
        """Start to serve a channel that was admitted."""
        if not self.open:
            channel.abort()
            return
        serving = channel.scheduled(self._serve(channel, forward, endpoint))
        task = self._tasks.create_task(serving, name=f"channel {self._spec.agent} {endpoint}")
        self._by_task[task] = channel
        if self._draining:
            channel.drain()
        task.add_done_callback(self._by_task.pop)

    def channel_closed(self) -> None:
        """Remove one channel from the count."""
        self._channels -= 1
        self._channel_closed.set()

    def shed(self) -> None:
        """End the newest sessions beyond the limit."""
        for task in list(self._by_task)[self._limit :]:
            task.cancel()

    def cancel(self) -> None:
        """End all sessions now."""
        self.open = False
        for task in self._by_task:
            task.cancel()

    def drain(self) -> None:
        """End the channels that wait for a next request; those that are still being opened get to serve one."""
        self._draining = True
        for channel in self._by_task.values():
            channel.drain()

    def finish_transfers(self) -> list[ForwardedChannel]:
        """End the channels on which a request is in progress once it has ended; returns them. Others continue."""
        busy = [channel for channel in self._by_task.values() if not channel.idle]
        for channel in busy:
            channel.drain()
        return busy

    async def all_closed(self, lost: asyncio.Event) -> None:
        """Wait until every channel is closed, or the connection is lost; the caller sets the deadline.

        A session ends when everything is written; its channel closes when the agent's sshd has passed it on.
        """
        while self._channels and not lost.is_set():
            self._channel_closed.clear()
            await self._channel_closed.wait()

    def log_declined(self) -> None:
        """Log declined channels, with at most one line per probe interval: the agent controls their number."""
        if self.declined > self._declined_logged:
            facts = {"agent": self._spec.agent, "limit": self._settings.max_channels}
            log.warning("channels declined", declined=self.declined - self._declined_logged, **facts)
            self._declined_logged = self.declined

    @property
    def _limit(self) -> int:
        return self._settings.max_channels + self.probe_streams

    async def _serve(self, channel: ForwardedChannel, forward: Forward, endpoint: Endpoint) -> None:
        try:
            await self._settings.channel_handler.serve_channel(channel, self._spec, forward, endpoint)
        except asyncio.CancelledError as cancelled:
            channel.abort()
            clear_exception_frames(cancelled)
            raise
        finally:
            channel.close()


@dataclass(frozen=True, slots=True)
class ListenerSessions:
    """The `ListenerOwner` of one listener: passes its channels to the tunnel's sessions."""

    sessions: Sessions
    forward: Forward
    endpoint: Endpoint

    def admit_channel(self) -> None:
        """Admit a channel; see `Sessions.admit`."""
        self.sessions.admit()

    def channel_opened(self, channel: ForwardedChannel) -> None:
        """Serve a channel."""
        self.sessions.serve(channel, self.forward, self.endpoint)

    def channel_closed(self) -> None:
        """Remove one channel from the count."""
        self.sessions.channel_closed()
