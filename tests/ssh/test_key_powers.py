"""What the login key could do on an agent beyond what a tunnel needs: each power is found, and no other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from functools import partial
from itertools import combinations

import asyncssh
import pytest

from tests.ssh.ssh_server import generate
from tests.until import until
from tunnelmgr.ssh import key_powers
from tunnelmgr.ssh.key_powers import Power, excess


class Agent(asyncssh.SSHServer):
    """An sshd that allows everybody to log in, and what is in `allowed`."""

    def __init__(self, allowed: AbstractSet[Power]) -> None:
        self._allowed = allowed

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002 - asyncssh's form
        """Require no proof."""
        return False

    def server_requested(self, listen_host: str, listen_port: int) -> bool:  # noqa: ARG002 - asyncssh's form
        """Listen if that is allowed."""
        return Power.LISTEN in self._allowed

    def connection_requested(
        self,
        dest_host: str,  # noqa: ARG002 - asyncssh's form
        dest_port: int,  # noqa: ARG002
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> bool:
        """Connect if that is allowed."""
        return self._is_allowed(Power.CONNECT)

    def unix_connection_requested(self, dest_path: str) -> "asyncssh.SSHUNIXSession[bytes]":
        """Connect to a unix socket if that is allowed and it exists."""
        if Power.UNIX not in self._allowed or dest_path != key_powers.SOCKETS[1]:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "open failed")
        return asyncssh.SSHUNIXSession()

    def _is_allowed(self, power: Power) -> bool:
        if power not in self._allowed:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
        return True


def run(allowed: AbstractSet[Power], process: asyncssh.SSHServerProcess[str]) -> None:
    """Run a command as a shell does, or as nologin."""
    command = process.command or ""
    echoed = command.removeprefix("echo ") + "\n"
    process.stdout.write(echoed if Power.COMMAND in allowed else "This account is currently not available.\n")
    process.exit(0)


@asynccontextmanager
async def logged_in(allowed: AbstractSet[Power], **options: object) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Log in to such an agent."""
    server = await asyncssh.create_server(
        lambda: Agent(allowed),
        "127.0.0.1",
        0,
        server_host_keys=[generate()],
        sftp_factory=Power.SFTP in allowed or None,
        **{"process_factory": partial(run, allowed), **options},
    )
    async with (
        server,
        await asyncssh.connect(
            "127.0.0.1", server.get_port(), known_hosts=None, config=None, username="tunnel"
        ) as connection,
    ):
        yield connection


@pytest.mark.parametrize(
    "allowed", [frozenset(some) for size in (0, 1, 4, 5) for some in combinations(Power, size)], ids=sorted
)
async def test_each_power_is_found_and_no_other(allowed: frozenset[Power]) -> None:
    """The answer names what the agent allows, in a fixed order; a restricted key has no power."""
    async with logged_in(allowed) as connection:
        found = await excess(connection)

    assert found == tuple(power.value for power in Power if power in allowed)


async def test_an_agent_that_does_not_answer_has_not_been_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that hangs is neither a power nor its absence."""
    monkeypatch.setattr(key_powers, "TIMEOUT", 0.2)

    async with logged_in(frozenset(), process_factory=hang) as connection:
        with pytest.raises(TimeoutError):
            await excess(connection)


async def hang(_process: asyncssh.SSHServerProcess[str]) -> None:
    """Never answer."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [lambda: "x" * 100_000, lambda: ""])
async def test_an_answer_of_another_kind_is_no_power(answer: Callable[[], str]) -> None:
    """A forced command may print anything, and as much as it wants."""

    def force(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(answer())
        process.exit(0)

    async with logged_in(frozenset(), process_factory=force) as connection:
        assert await excess(connection) == ()


async def test_a_listener_that_was_tried_is_closed_again() -> None:
    """The try leaves nothing behind on the agent."""
    closed: list[int] = []

    class Recording(Agent):
        def server_requested(self, _host: str, listen_port: int) -> "asyncssh.SSHListener":  # type: ignore[override]
            return Listener(closed, listen_port)

    server = await asyncssh.create_server(
        lambda: Recording(frozenset()),
        "127.0.0.1",
        0,
        server_host_keys=[generate()],
        process_factory=partial(run, set()),
    )
    async with (
        server,
        await asyncssh.connect(
            "127.0.0.1", server.get_port(), known_hosts=None, config=None, username="tunnel"
        ) as connection,
    ):
        assert await excess(connection) == (Power.LISTEN.value,)
        await until(lambda: bool(closed))

    assert closed[0] in key_powers.HIGH_PORTS


class Listener(asyncssh.SSHListener):
    """A listener that records its close."""

    def __init__(self, closed: list[int], port: int) -> None:
        super().__init__()
        self._closed = closed
        self._port = port

    def get_port(self) -> int:
        """Return its port."""
        return self._port

    def close(self) -> None:
        """Note the close."""
        self._closed.append(self._port)

    async def wait_closed(self) -> None:
        """Return at once."""
