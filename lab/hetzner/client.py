"""Starts the stand-in for Hetzner Cloud, in this process or on a machine of the lab, and controls it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, Self

from lab.cloud_service import CloudService
from lab.hetzner.server import TOKEN, ApiServer, HetznerApi

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from lab.namespaces import Machine


class _Commands(Protocol):
    """The commands, over any transport."""

    @property
    def token(self) -> str:
        """The only token that the API accepts; a dummy."""
        return TOKEN

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        ...

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Run a command and return its result."""
        ...

    @property
    def endpoint(self) -> str:
        """The `endpoint_url` for clients on the same machine."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[str]:
        """The requests so far, each as `GET /v1/servers?…`."""
        found = self.command("requests")
        return list(found) if isinstance(found, list) else []

    def launch(
        self,
        name: str,
        ip: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        private: str | None = None,
        ipv6: str | None = None,
    ) -> int:
        """Create a server and return its id; it is `running` at once. `ipv6` is its network, in CIDR notation."""
        return int(str(self.command("launch", name, ip, dict(labels or {}), private=private, ipv6=ipv6)))

    def delete(self, id_: int) -> None:
        """Delete the server; unlike on EC2 it disappears from every listing."""
        self.command("delete", id_)

    def state(self, id_: int, status: str) -> None:
        """Set the server's state, such as running, starting, off, migrating or unknown."""
        self.command("state", id_, status)

    def rebuild(self, id_: int) -> None:
        """Start to rebuild the server from an image; `state(id, "running")` ends that."""
        self.command("state", id_, "rebuilding")

    def relabel(self, id_: int, labels: Mapping[str, str]) -> None:
        """Replace the server's labels."""
        self.command("relabel", id_, dict(labels))

    def budget(self, remaining: int, limit: int = 3600) -> None:
        """Set how many requests the project has left; the rate limit restores them as Hetzner's does."""
        self.command("budget", remaining, limit)

    def fault(self, call: str, *, times: int = 1, **fault: object) -> None:
        """Make the next calls fail; `call` is `list` or `get`, and `fault` has the fields of a `HetznerFault`.

        `status=503` answers with that status; `cut=0.5` breaks the connection in the middle of the answer, `cut=0`
        before it; `empty=True` makes a listing return no server; `stall=5` delays the answer by this many seconds, at
        most until `clear_faults`; `forever` and `later_pages` are as for EC2.
        """
        self.command("fault", call, [fault] * times)

    def clear_faults(self) -> None:
        """Make every call succeed again, also those that stall now."""
        self.command("clear-faults")


class HetznerCloud(_Commands):
    """The API in this process, on a free port of 127.0.0.1, until the `with` ends."""

    def __init__(self) -> None:
        self._api = HetznerApi()
        self._server: ApiServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; a restart keeps it."""
        return self._port

    def start(self) -> Self:
        """Start to listen."""
        self._server = server = ApiServer(("127.0.0.1", self._port), self._api)
        self._port = server.server_address[1]
        self._thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="hetzner")
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening; the servers stay, the faults are cleared."""
        if self._server and self._thread:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5)
            self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Run a command and return its result."""
        return self._api.commands[name](*args, **kwargs)

    def before_page(self, change: Callable[[int], None] | None) -> None:
        """Call `change` with the page's number before each page of a listing."""
        self._api.before_page = change


class HetznerService(CloudService, _Commands):
    """The API as a process of its own, on a machine of the lab or on the host."""

    def __init__(self, machine: Machine | None, port: int, folder: Path) -> None:
        super().__init__("lab.hetzner", machine, port, folder)
