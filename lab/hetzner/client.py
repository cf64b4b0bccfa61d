"""Starts the look-alike of Hetzner Cloud, within this process or on a machine of the lab, and commands it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, Self

from lab.hetzner.server import TOKEN, LabHetzner, Listener
from lab.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from lab.namespaces import Machine


class _Commands(Protocol):
    """The commands, however they reach the API."""

    @property
    def token(self) -> str:
        """The only token that the API accepts; it is of no worth anywhere."""
        return TOKEN

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        ...

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Give a command and return its result."""
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
        """Delete the server; unlike on EC2 nothing of it is listed any more."""
        self.command("delete", id_)

    def state(self, id_: int, status: str) -> None:
        """Show the server in this state, such as running, starting, off, migrating or unknown."""
        self.command("state", id_, status)

    def rebuild(self, id_: int) -> None:
        """Begin to write an image over the server's disk; `state(id, "running")` ends it."""
        self.command("state", id_, "rebuilding")

    def relabel(self, id_: int, labels: Mapping[str, str]) -> None:
        """Replace the server's labels."""
        self.command("relabel", id_, dict(labels))

    def budget(self, remaining: int, limit: int = 3600) -> None:
        """Set how many requests the project has left; they come back as they do in truth."""
        self.command("budget", remaining, limit)

    def fault(self, call: str, *, times: int = 1, **fault: object) -> None:
        """Let the next calls fail; `call` is `list` or `get`, and `fault` the fields of a `HetznerFault`.

        `status=503` answers so; `cut=0.5` breaks the connection half-way through the answer, `cut=0` before it;
        `empty=True` makes a listing succeed with no server; `stall=5` waits so many seconds, at most until
        `clear_faults`; `forever` and `later_pages` are as for EC2.
        """
        self.command("fault", call, [fault] * times)

    def clear_faults(self) -> None:
        """Let every call succeed again, those that stall now included."""
        self.command("clear-faults")


class HetznerCloud(_Commands):
    """The API within this process, on a free port of 127.0.0.1 while the `with` lasts."""

    def __init__(self) -> None:
        self._lab = LabHetzner()
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; it stays the same when the API stops and starts again."""
        return self._port

    def start(self) -> Self:
        """Listen."""
        self._listener = listener = Listener(("127.0.0.1", self._port), self._lab)
        self._port = listener.server_address[1]
        self._thread = threading.Thread(target=listener.serve_forever, args=(0.01,), name="hetzner")
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse connections from here on; the servers stay, the faults do not."""
        if self._listener and self._thread:
            self._listener.shutdown()
            self._listener.server_close()
            self._thread.join(5)
            self._listener = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Give a command and return its result."""
        return self._lab.commands[name](*args, **kwargs)

    def before_page(self, change: Callable[[int], None] | None) -> None:
        """Call `change` with the page's number before each page of a listing is made."""
        self._lab.before_page = change


class HetznerService(Service, _Commands):
    """The API as a process of its own, on a machine of the lab or on the host."""

    def __init__(self, machine: Machine | None, port: int, folder: Path) -> None:
        super().__init__("lab.hetzner", machine, port, folder)
