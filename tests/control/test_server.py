"""The API on the unix socket: who can connect, who can change things, and every answer."""

import asyncio
import http.client
import json
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.control.fake_daemon import KEY, FakeDaemon, record, world
from tunnelmgr.control import server as server_module
from tunnelmgr.control.server import ControlServer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import ReleaseRequested, RetryRequested, SeedAdded
from tunnelmgr.core.world import Quarantine
from tunnelmgr.errors import ConfigError, ControlError

Ask = Callable[..., Awaitable[Any]]
NOBODY = 65534

pytestmark = pytest.mark.usefixtures("server")


class OnSocket(http.client.HTTPConnection):
    """HTTP over a unix socket, independent of the product's client."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.place = place

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self.place))


def request(place: Path, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    """Send one request, and return the answer's status and JSON."""
    connection = OnSocket(place)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


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


# --- the socket ---


async def test_the_socket_belongs_to_its_owner_and_its_group(server: ControlServer, place: Path) -> None:
    """The socket's mode is 0660 whatever the umask is, and the server removes it at its end."""
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
    server = ControlServer(daemon, place)
    await server.start()

    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200
    await server.close()


async def test_a_second_daemon_on_the_same_socket_is_refused(
    place: Path,
    ask: Ask,
) -> None:
    """A second daemon on the same socket is refused, and the first keeps its socket."""
    with pytest.raises(ControlError, match="another daemon"):
        await ControlServer(FakeDaemon(), place).start()

    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200


async def test_a_path_where_no_socket_can_be_is_an_error_that_names_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A folder, a file in the way or a path that is too long is an error that names the path."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file", tmp_path / "file" / "sock", tmp_path / ("x" * 120)):
        with pytest.raises(ControlError, match=r"controller\.socket"):
            await ControlServer(daemon, place).start()
    assert (tmp_path / "file").read_text() == ""


# --- reading ---


async def test_status_and_agents_are_served(place: Path, ask: Ask) -> None:
    """`/v1/status` and `/v1/agents` serve the JSON that the commands print."""
    code, status = await ask(request, place, "GET", "/v1/status")
    assert (code, status["controller"], status["agents"]) == (200, "registry-1", 4)

    code, agents = await ask(request, place, "GET", "/v1/agents")
    assert (code, len(agents)) == (200, 4)

    code, agents = await ask(request, place, "GET", "/v1/agents?departed=true")
    assert (code, len(agents)) == (200, 5)


async def test_one_agent_is_served_with_its_history(place: Path, ask: Ask) -> None:
    """One agent is served by its id, its name, or an unambiguous prefix."""
    for wanted in ("static:builder-1", "builder-1", "other"):
        code, agent = await ask(request, place, "GET", f"/v1/agents/{wanted}")
        assert code == 200
        assert [moment["step"] for moment in agent["history"]] == ["seen", "evidence"]


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("/v1/agents/nobody", 404, "tunnelmgr list --all"),
        ("/v1/agents/builder", 409, "use a longer prefix"),
        ("/v2/", 404, ""),
        ("/v1/agents/%2e%2e%2fstatus", 404, ""),
    ],
)
async def test_an_unknown_agent_or_path_is_refused_as_json(
    place: Path,
    ask: Ask,
    target: str,
    code: int,
    words: str,
) -> None:
    """A refusal is JSON with a code for scripts and a message for people."""
    status, answer = await ask(request, place, "GET", target)

    assert status == code
    assert set(answer["error"]) >= {"code", "message"}
    assert words in answer["error"]["message"]


# --- changing ---


async def test_a_retry_is_reported_to_the_controller(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A retry names the agent by its whole id, however it was addressed."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-2/retry")

    assert (code, answer["agent"], answer["phase"]) == (200, "static:builder-2", "down")
    assert daemon.events == [RetryRequested(AgentId("static:builder-2"), os.geteuid())]


async def test_a_quarantined_agent_is_not_retried(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A quarantined agent cannot be retried, only released."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/retry")

    assert code == 409
    assert "tunnelmgr show static:builder-3" in answer["error"]["message"]
    assert daemon.events == []


async def test_a_release_is_reported_with_its_reason(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """A release is reported with its reason and the user's id."""
    code, _ = await ask(request, place, "POST", "/v1/agents/builder-3/release", b'{"reason": "reinstalled"}')

    assert code == 200
    assert daemon.events == [ReleaseRequested(AgentId("static:builder-3"), "reinstalled", os.geteuid())]


async def test_a_machine_named_like_another_agents_id_is_not_mistaken_for_it(
    daemon: FakeDaemon, place: Path, ask: Ask
) -> None:
    """An id finds its agent whatever other machines are named; an ambiguous text changes nothing."""
    held = record("builder-3", quarantine=Quarantine(1.0, "host-key-mismatch", "another key"))
    evil = [
        replace(held, agent=replace(held.agent, id=AgentId(f"ec2:i-{number}"), name=name))
        for number, name in enumerate(("static:builder-3", "builder-3", "builder", "\x1b[2Jx"))
    ]
    daemon.world = world((held, None), *((one, None) for one in evil))

    for wanted in ("static:builder-3", "builder-3"):
        _, shown = await ask(request, place, "GET", f"/v1/agents/{wanted}")
        code, _ = await ask(request, place, "POST", f"/v1/agents/{wanted}/release", b'{"reason": "looked at"}')
        assert (shown["agent"], code) == ("static:builder-3", 200)
    code, refused = await ask(request, place, "POST", "/v1/agents/builder/release", b'{"reason": "looked at"}')
    _, listed = await ask(request, place, "GET", "/v1/agents/i-")

    assert {event.agent for event in daemon.events if isinstance(event, ReleaseRequested)} == {"static:builder-3"}
    assert code == 409
    assert "matches ec2:i-2 (named builder), static:builder-3; use a longer prefix" in refused["error"]["message"]
    assert "ec2:i-3 (named ?[2Jx)" in listed["error"]["message"]


@pytest.mark.parametrize("body", [None, b"{}", b'{"reason": "  "}'])
async def test_a_release_without_a_reason_is_refused(
    daemon: FakeDaemon, place: Path, ask: Ask, body: bytes | None
) -> None:
    """A release without a reason is refused."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/release", body)

    assert code == 400
    assert "say why static:builder-3 is safe again" in answer["error"]["message"]
    assert daemon.events == []


async def test_a_seed_is_kept_under_a_generated_id(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """A seed is kept under a generated id with its public key and its expiry."""
    body = json.dumps({"key": KEY, "seconds": 60}).encode()

    code, answer = await ask(request, place, "POST", "/v1/seeds", body)

    (event,) = daemon.events
    assert code == 200
    assert isinstance(event, SeedAdded)
    assert (event.seed.id, event.seed.key, event.seed.holder) == (answer["seed"], KEY, None)
    assert 50 < event.seed.expires - time.time() <= 60


@pytest.mark.parametrize(
    "asked",
    [
        {"key": "ssh-ed25519", "seconds": 60},
        {"key": f"{KEY[:-8]}", "seconds": 60},
        {"key": "-----BEGIN OPENSSH PRIVATE KEY-----", "seconds": 60},
        {"key": KEY, "seconds": 0},
        {"key": KEY, "seconds": "NaN"},
        {"key": KEY, "seconds": "inf"},
        {"key": KEY, "seconds": 31 * 86400},
        {"key": KEY},
        {"seconds": 60},
        [],
    ],
)
async def test_an_invalid_seed_is_refused(daemon: FakeDaemon, place: Path, ask: Ask, asked: object) -> None:
    """An invalid seed is refused and not kept, and neither is a private key sent by mistake."""
    code, answer = await ask(request, place, "POST", "/v1/seeds", json.dumps(asked).encode())

    assert code == 400
    assert "PRIVATE" not in answer["error"]["message"]
    assert daemon.events == []


async def test_an_agent_that_is_not_quarantined_is_not_released(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """An agent that is not quarantined cannot be released, which would forget its key."""
    code, _ = await ask(request, place, "POST", "/v1/agents/builder-1/release", b"{}")

    assert code == 409
    assert daemon.events == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"reason"', b"null", b"\xff", b"1e999"])
async def test_a_body_that_is_not_an_object_is_a_bad_request(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    body: bytes,
) -> None:
    """A body that is not a JSON object releases nothing."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/release", body)

    assert (code, answer["error"]["code"]) == (400, "bad-request")
    assert daemon.events == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (("POST", "/v1/seeds", b"[" * 500_000), 400),
        (("POST", "/v1/seeds", b'{"a":' * 12_000), 400),
        (("POST", "/v1/seeds", b"[" * 2_000_000), 413),
        (("POST", "/v1/seeds", b'{"key": "x", "seconds": 1' + b"0" * 4000 + b"}"), 400),
        (("POST", "/v1/seeds", b'{"key": "x", "seconds": 1' + b"0" * 5000 + b"}"), 400),
        (("POST", "/v1/seeds", None), 400),
        (("POST", "/v1/agents/builder-3/release", b"[" * 500_000), 400),
        (("DELETE", "/v1/seeds", None), 405),
        (("POST", "/v1/nothing", b"{}"), 404),
        (("GET", "/", None), 404),
    ],
)
async def test_every_refusal_is_json(
    daemon: FakeDaemon, place: Path, ask: Ask, asked: tuple[str, str, bytes | None], code: int
) -> None:
    """Bodies that are too deep, too long or not JSON, and unknown paths, are refused with a code and a message."""
    status, answer = await ask(request, place, *asked)

    assert status == code
    assert set(answer["error"]) == {"code", "message"}
    assert daemon.events == []


async def test_an_internal_error_costs_one_request_and_is_json(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """An unexpected failure is answered with 500 as JSON, and the next request is served."""
    daemon.bad = RuntimeError("unforeseen")  # type: ignore[assignment]

    assert await ask(request, place, "POST", "/v1/reload") == (
        500,
        {"error": {"code": "internal", "message": "internal error; the daemon's log has the traceback"}},
    )
    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200


@pytest.mark.parametrize("change", ["retry", "release"])
async def test_a_name_that_matches_no_agent_or_several_changes_nothing(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    change: str,
) -> None:
    """A name that matches no agent or several retries and releases nothing."""
    assert (await ask(request, place, "POST", f"/v1/agents/nobody/{change}"))[0] == 404
    assert (await ask(request, place, "POST", f"/v1/agents/builder/{change}"))[0] == 409
    assert (await ask(request, place, "GET", f"/v1/agents/builder-1/{change}"))[0] == 405
    assert daemon.events == []


async def test_a_reload_answers_with_its_remarks(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A reload answers with remarks about what takes effect at the next start only."""
    daemon.remarks = ["controller.socket has changed and takes effect at the next start"]

    assert await ask(request, place, "POST", "/v1/reload") == (200, {"reloaded": True, "remarks": daemon.remarks})


async def test_an_invalid_configuration_is_answered_with_every_problem(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A refused reload is answered with every problem and the file's name."""
    daemon.bad = ConfigError(["source[0].poll: missing", "ssh.key: there is no file"], file="tunnelmgr.toml")
    code, answer = await ask(request, place, "POST", "/v1/reload")

    assert code == 422
    assert answer["error"]["code"] == "config"
    assert answer["error"]["problems"] == ["source[0].poll: missing", "ssh.key: there is no file"]
    assert answer["error"]["file"] == "tunnelmgr.toml"


# --- who may ---


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
        return answer.status, json.loads(answer.read())

    try:
        code, _ = await ask(speak, "GET", "/v1/agents")
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
