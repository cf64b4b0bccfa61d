"""What the daemon serves on its own side: the unix socket, and the address of metrics, health and the status page."""

from collections.abc import Callable
from dataclasses import dataclass

from tunnelmgr.config import ControllerConfig
from tunnelmgr.control.event_log import EventLog
from tunnelmgr.control.server import ControlServer
from tunnelmgr.daemon.operations import DaemonOperations
from tunnelmgr.errors import ControlError
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes
from tunnelmgr.web.listener import ReadOnlyListener
from tunnelmgr.web.pages import StatusPages


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The two servers, and the streams of events that they serve."""

    control: ControlServer
    listener: ReadOnlyListener
    pages: StatusPages
    events: EventLog
    settings: ControllerConfig

    @classmethod
    def make(
        cls, operations: DaemonOperations, metrics: Metrics, clock: Callable[[], float], wall: Callable[[], float]
    ) -> "Interfaces":
        """Make them for a daemon; `wall` is the clock by which seeds expire."""
        settings = operations.reloads.started_with
        events, pages = EventLog(process=f"{clock() * 1000:.0f}"), StatusPages(operations, clock)
        health, page = tuple(HealthRoutes(operations, metrics).routes()), tuple(pages.routes())
        control = ControlServer(operations, settings.socket, wall, (*health, *page, *events.routes()))
        public = (*health, *page) if settings.metrics_page else health
        return cls(control, ReadOnlyListener(public, settings.metrics_names), pages, events, settings)

    async def open_socket(self) -> None:
        """Open the unix socket; raises ControlError."""
        await self.control.start()

    async def open_address(self) -> None:
        """Listen on the address of `controller.metrics` if there is one; raises ControlError."""
        address = self.settings.metrics
        if address is None:
            return
        try:
            await self.listener.start(address)
        except OSError as taken:
            raise ControlError(f"controller.metrics: cannot listen on {address}: {taken.strerror}") from taken

    async def close(self) -> None:
        """End every stream and stop answering."""
        self.pages.close()
        self.events.close()
        await self.listener.close()
        await self.control.close()
