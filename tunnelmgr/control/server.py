"""The API on the unix socket: HTTP and JSON, for users and scripts of this machine only.

The socket's mode (0660) limits who can connect; the kernel reports which user requests a change (SO_PEERCRED, unix(7)).
"""

import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from tunnelmgr.control.callers import MAX_BODY_BYTES, READS, ApiCaller, errors_as_json, set_caller
from tunnelmgr.control.connections import LimitedRunner
from tunnelmgr.control.routes import Operations, RefusedChanges, audited
from tunnelmgr.errors import ControlError
from tunnelmgr.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


log = structlog.get_logger(__name__)


class ControlServer:
    """Serves routes until closed, and admits changes by users who may make them."""

    def __init__(self, operations: Operations, path: Path, routes: Iterable[web.AbstractRouteDef]) -> None:
        self._operations = operations
        self._refused = RefusedChanges(operations)
        self._path = path
        self._group = -1
        self._is_bound = False
        self._runner = LimitedRunner(routes, [errors_as_json, self._allowed], MAX_BODY_BYTES)

    async def start(self) -> None:
        """Open the socket; raises ControlError if that fails or another daemon answers on it."""
        listener = _bound(self._path)
        self._is_bound = True
        self._group = self._path.stat().st_gid
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop answering and remove the socket, unless it is another daemon's."""
        await self._runner.cleanup()
        if self._is_bound:
            self._path.unlink(missing_ok=True)

    @web.middleware
    async def _allowed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let anyone who can connect read; changes need root, the daemon's user or the socket's group."""
        uid, gid = _peer(request)
        set_caller(request, ApiCaller(f"uid {uid}", uid))
        if request.method in READS:
            return await handler(request)
        # In a thread: group membership may have to be read from a disk or a server that does not answer.
        if not await in_thread(_may_change, uid, gid, self._group):
            cure = "run this as root, or add the user to the socket's group"
            self._refused.refuse(request, f"uid {uid} may only read: {cure}")
        log.info("operator request received", uid=uid, path=request.path)
        return await audited(request, handler, self._operations)


def _peer(request: web.Request) -> tuple[int, int]:
    """Return the uid and gid of the process at the other end."""
    transport = request.transport
    held: socket.socket | None = transport.get_extra_info("socket") if transport else None
    if held is None:
        raise web.HTTPForbidden(text="the connection is closed")
    _, uid, gid = struct.unpack("3i", held.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid, gid


def _may_change(uid: int, gid: int, group: int) -> bool:
    if uid in {0, os.geteuid()} or gid == group:
        return True
    try:
        name = pwd.getpwuid(uid).pw_name
        return group in os.getgrouplist(name, gid) or name in grp.getgrgid(group).gr_mem
    except KeyError:
        return False


def _bound(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_socket():
            if _answers(path):
                raise ControlError(
                    f"{path}: another daemon answers on this socket; stop it, or set another controller.socket"
                )
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _umask(0o117):
                listener.bind(str(path))
        except OSError:
            listener.close()
            raise
    except OSError as failed:
        raise ControlError(
            f"{path}: {failed.strerror or failed}; set controller.socket to a path that this user can create"
        ) from failed
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def _umask(mask: int) -> "Iterator[None]":
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
