"""The protocols that more than one folder uses; any other is defined beside its caller."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import Event
from tunnelmgr.core.trust import HostTrust
from tunnelmgr.core.world import World

Result = TypeVar("Result")


class EventSink(Protocol):
    """Takes events from every other part of the process; `controller.py` implements it."""

    def report(self, event: Event) -> None:
        """Queue an event for the controller's loop, which processes events in order; returns at once."""
        ...


class ByteSource(Protocol):
    """A socket that is read directly into the caller's buffers; `gate/target_socket.py` implements it."""

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """Call `reader` in each iteration of the event loop in which data can be read, until it is replaced."""
        ...

    def receive_into(self, buffers: Sequence[memoryview]) -> int | None:
        """Fill the buffers from the front; returns the number of bytes, 0 at the end, None if no data is available.

        Raises ConnectionError.
        """
        ...


class Channel(Protocol):
    """One TCP stream that the agent's sshd accepted for us, bounded in memory; `dataplane/channel.py` implements it."""

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte, or `b""` once the agent's side has ended.

        Raises ConnectionError when the channel was aborted.
        """
        ...

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Return the coroutine such that, as a task, its steps take turns with those of other agents."""
        ...

    async def checkpoint(self) -> None:
        """Let other agents run if this one has used up its slice; called in each step of a loop that may not wait."""
        ...

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, waiting while more than a bounded amount is unsent.

        Raises ConnectionError when the channel is closed.
        """
        ...

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Send what comes from `source`, up to `limit` bytes, and call `on_sent` with the size of each piece sent.

        Returns the number of bytes sent: fewer than `limit` if the source ended. Raises ConnectionError when the
        source breaks or the channel is closed. Nothing else may read the source meanwhile.
        """
        ...

    def write_eof(self) -> None:
        """Send EOF to the agent's side; reading continues."""
        ...

    def close(self) -> None:
        """Close both directions once what was written has been sent."""
        ...

    def abort(self) -> None:
        """Close at once, dropping unsent data."""
        ...


class AgentChannel(Channel, Protocol):
    """A channel as its tunnel passes it on, which knows when the tunnel is about to end."""

    async def wanted(self) -> bool:
        """Wait until there is something to read; False once the agent's side has ended, or the tunnel drains."""
        ...

    def intercept(self, takes: Callable[[bytes], bool] | None) -> None:
        """Offer what arrives while nothing is unread to `takes`, which returns whether that was all that is needed."""
        ...


class WorldView(Protocol):
    """Reads the world; `controller.py` implements it."""

    @property
    def world(self) -> World:
        """The world as it is now, immutable and whole."""
        ...


class HostKeySource(Protocol):
    """One way to learn which host keys an agent has; each trust method in `trust/` implements it."""

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the evidence; raises HostKeyUnknownError, with what is missing, if there is none yet."""
        ...
