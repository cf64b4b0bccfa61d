"""The unix socket: where it can be, who can connect, and who may make changes."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.control.fake_daemon import FakeDaemon
from tests.control.unix_http import OnSocket, request
from tunnelmgr.control import server as server_module
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.control.server import ControlServer
from tunnelmgr.errors import ControlError

Ask = Callable[..., Awaitable[Any]]
NOBODY = 65534

pytestmark = pytest.mark.usefixtures("server")


def connected_as_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> OnSocket:
    """Return a connection that another user made, as the kernel records it; without root, the record is faked."""
    # By its bare name: the folders above are this test's own.
    monkeypatch.chdir(place.parent)
    connection = OnSocket(Path(place.name))
    if os.geteuid() != 0:
        monkeypatch.setattr(server_module, "_peer", lambda _request: (NOBODY, NOBODY))
        connection.connect()
        return connection
    gid = os.getegid()
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        connection.connect()
    finally:
        os.seteuid(0)
        os.setegid(gid)
    return connection


async def test_the_socket_belongs_to_its_owner_and_its_group(server: ControlServer, place: Path) -> None:
    """The socket's mode is 0660 regardless of the umask, and the server removes it at its end."""
    assert mode_of(place) == 0o660

    await server.close()
    assert mode_of(place) is None


def mode_of(place: Path) -> int | None:
    """Return a file's mode, None if there is no file."""
    return stat.S_IMODE(place.stat().st_mode) if place.exists() else None


async def test_a_stale_socket_is_replaced(daemon: FakeDaemon, tmp_path: Path, ask: Ask) -> None:
    """A socket that a killed daemon left is replaced."""
    place = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))
    server = ControlServer(daemon, place, ApiRoutes(daemon).routes())
    await server.start()

    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200
    await server.close()


async def test_a_second_daemon_on_the_same_socket_is_refused(
    place: Path,
    ask: Ask,
) -> None:
    """A second daemon on the same socket is refused, and the first keeps its socket."""
    with pytest.raises(ControlError, match="another daemon"):
        await ControlServer(FakeDaemon(), place, ()).start()

    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200


async def test_a_path_where_no_socket_can_be_is_an_error_that_names_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A folder, a file in the way or a path that is too long is an error that names the path."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file", tmp_path / "file" / "sock", tmp_path / ("x" * 120)):
        with pytest.raises(ControlError, match=r"controller\.socket"):
            await ControlServer(daemon, place, ApiRoutes(daemon).routes()).start()
    assert (tmp_path / "file").read_text() == ""


async def test_another_user_who_can_connect_may_only_read(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user outside the socket's group may only read, even if the socket's mode was opened by mistake."""
    os.chmod(place, 0o666)  # noqa: PTH101, S103 - a mistake on purpose
    connection = connected_as_nobody(place, monkeypatch)

    def speak(method: str, target: str) -> tuple[int, Any]:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else None

    try:
        for method in ("GET", "HEAD"):
            code, _ = await ask(speak, method, "/v1/agents")
            assert code == 200
        for target in ("/v1/agents/builder-2/retry", "/v1/agents/builder-3/release", "/v1/reload"):
            code, answer = await ask(speak, "POST", target)
            assert code == 403
            assert f"uid {NOBODY} may only read" in answer["error"]["message"]
    finally:
        connection.close()
    assert daemon.events == []
    assert daemon.reloads == 0


def test_root_the_daemons_user_and_the_sockets_group_may_make_changes() -> None:
    """Root, the daemon's user and the socket's group may make changes; other and unknown users may not."""
    group = 4242
    assert server_module._may_change(0, 0, group)
    assert server_module._may_change(os.geteuid(), 7, group)
    assert server_module._may_change(NOBODY, group, group)
    assert not server_module._may_change(NOBODY, NOBODY, group)
    assert not server_module._may_change(4_000_000, 4_000_000, group)


def test_a_member_of_the_sockets_group_may_make_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may make changes if the socket's group is one of its supplementary groups."""
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 4242])

    assert server_module._may_change(NOBODY, NOBODY, 4242)


async def test_a_silent_client_does_not_block_others(
    place: Path,
    ask: Ask,
) -> None:
    """A silent client blocks no other client, and its connection ends with the server."""
    _, writer = await asyncio.open_unix_connection(place)

    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200
    writer.close()
