"""What the daemon serves on its own side: the unix socket, and the address of metrics, health and the status page."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from tunnelmgr.config import ApiConfig, ControllerConfig
from tunnelmgr.control.event_log import EventLog
from tunnelmgr.control.loop_share import LoopShare
from tunnelmgr.control.remote import ApiClient, RemoteServer
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.control.server import ControlServer
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.daemon.api_checks import tls_files
from tunnelmgr.daemon.operations import DaemonOperations
from tunnelmgr.errors import ControlError
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes
from tunnelmgr.web.listener import ReadOnlyListener
from tunnelmgr.web.pages import StatusPages


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The servers, and the streams of events that they serve; `remote` is None without `[api]`."""

    control: ControlServer
    listener: ReadOnlyListener
    remote: RemoteServer | None
    pages: StatusPages
    events: EventLog
    settings: ControllerConfig
    api: ApiConfig | None

    @classmethod
    def make(
        cls, operations: DaemonOperations, metrics: Metrics, clock: Callable[[], float], wall: Callable[[], float]
    ) -> "Interfaces":
        """Make them for a daemon; `wall` is the clock by which seeds expire. Raises ControlError."""
        metrics.watch(operations)
        settings, api = operations.reloads.started_with, operations.reloads.started.api
        share, events = LoopShare(), EventLog(process=f"{clock() * 1000:.0f}")
        pages = StatusPages(operations, clock, share)
        health, page = tuple(HealthRoutes(operations, metrics).routes()), tuple(pages.routes())
        routes = (*ApiRoutes(operations, wall, share).routes(), *health, *page, *events.routes())
        control = ControlServer(operations, settings.socket, routes)
        remote = None if api is None else make_remote(operations, api, routes)
        public = (*health, *page) if settings.metrics_page else health
        return cls(control, ReadOnlyListener(public, settings.metrics_names), remote, pages, events, settings, api)

    async def open_socket(self) -> None:
        """Open the unix socket; raises ControlError."""
        await self.control.start()

    async def open_addresses(self) -> None:
        """Listen on the addresses of `controller.metrics` and `api.listen` if there are any; raises ControlError."""
        if (address := self.settings.metrics) is not None:
            await _open(self.listener.start, address, "controller.metrics")
        if self.remote is not None and self.api is not None:
            await _open(self.remote.start, self.api.listen, "api.listen")

    async def renew(self) -> None:
        """Use a renewed certificate; a job of the scheduler."""
        if self.remote is not None:
            await self.remote.renew()

    async def close(self) -> None:
        """End every stream and stop answering."""
        self.pages.close()
        self.events.close()
        await self.listener.close()
        if self.remote is not None:
            await self.remote.close()
        await self.control.close()


def make_remote(operations: DaemonOperations, api: ApiConfig, routes: Iterable[web.AbstractRouteDef]) -> RemoteServer:
    """Return the API for other machines; raises ControlError if a file cannot be used."""
    try:
        clients = [ApiClient.of(client.name, client.role, client.token_file) for client in api.client]
        return RemoteServer(operations, clients, tls_files(api), routes)
    except OSError as unreadable:
        raise ControlError(f"api: cannot read {unreadable.filename}: {unreadable.strerror}") from unreadable


async def _open(listen: Callable[[Endpoint], Awaitable[None]], at: Endpoint, key: str) -> None:
    try:
        await listen(at)
    except OSError as taken:
        raise ControlError(f"{key}: cannot listen on {at}: {taken.strerror}") from taken
