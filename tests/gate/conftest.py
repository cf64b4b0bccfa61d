"""Fixtures of the gate's tests: a channel in memory, a real docker-registry, and a registry that follows a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import h11
import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.cached_gate import CachedGate
from tests.gate.docker_registry import Registry, running_registry
from tests.gate.memory_channel import MemoryChannel
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_trace import RequestTrace
from tunnelmgr.gate.traffic import Traffic

DEADLINE = 10.0
CALLER = Caller(AgentId("static:builder-1"), "1", "builder-1", "ci", "registry-1", "127.0.0.1:5000", "registry")


class Records:
    """A request log that keeps its records in memory."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []
        self.throttled: list[AgentId] = []
        self.failure: str | None = None
        self.traced = False

    def trace(self, _: AgentId) -> RequestTrace | None:
        """Trace every request, or none."""
        return RequestTrace() if self.traced else None

    def record(self, request: RequestRecord) -> None:
        """Keep one."""
        self.all.append(request)

    async def throttle(self, agent: AgentId) -> None:
        """Keep which agent was to wait."""
        self.throttled.append(agent)

    def outage(self) -> str | None:
        """Return the outage that the test has set."""
        return self.failure


@dataclass
class Reply:
    """A response as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def message(self) -> str:
        """The message of the OCI error."""
        return str(json.loads(self.body)["errors"][0]["message"])

    @property
    def code(self) -> str:
        """The code of the OCI error."""
        return str(json.loads(self.body)["errors"][0]["code"])


@dataclass
class Conversation:
    """A client that uses one channel of the gate."""

    channel: MemoryChannel
    traffic: Traffic
    serving: "asyncio.Task[None]"
    interim: list[int] = field(default_factory=list)

    async def ask(self, method: str, target: str, *lines: str, body: bytes = b"") -> Reply:
        """Send one request with `Host: localhost:5000` and the given header lines, and return its answer."""
        length = (f"Content-Length: {len(body)}",) if body else ()
        head = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: localhost:5000", *lines, *length, "", ""))
        self.channel.send(head.encode("latin-1") + body)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Reply:
        """Return the next answer on the channel."""
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reply = Reply(0, {})
        async with asyncio.timeout(DEADLINE):
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(await self._more())
                elif isinstance(event, h11.InformationalResponse):
                    self.interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    names = {name.decode().lower(): value.decode() for name, value in event.headers}
                    reply = Reply(event.status_code, names)
                elif isinstance(event, h11.Data):
                    reply.body += event.data
                else:
                    self.channel.outgoing[:0] = client.trailing_data[0]
                    return reply

    async def _more(self) -> bytes:
        async with self.channel.changed:
            await self.channel.changed.wait_for(lambda: self.channel.outgoing)
        data = bytes(self.channel.outgoing)
        self.channel.outgoing.clear()
        return data

    async def finished(self) -> None:
        """Wait until the gate has closed the channel."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([self.serving])


Talk = Callable[..., AbstractAsyncContextManager[Conversation]]


@pytest.fixture
def talk() -> Talk:
    """Open a channel of a forward, or to a registry; at the end the agent closes it, and the session must end."""

    @asynccontextmanager
    async def open_channel(
        gate: Gate, to: Endpoint | Forward, agent_id: AgentId = CALLER.agent, incarnation: str = CALLER.incarnation
    ) -> AsyncIterator[Conversation]:
        channel, traffic = MemoryChannel(), Traffic()
        forward = Forward("registry", (), to) if isinstance(to, Endpoint) else to
        caller = replace(CALLER, agent=agent_id, incarnation=incarnation, forward=forward.name)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(gate.serve(channel, caller, forward, traffic), name="gate session")
            conversation = Conversation(channel, traffic, serving)
            yield conversation
            channel.end()
            await conversation.finished()
        assert traffic.channels == 0
        assert channel.closed

    return open_channel


@pytest.fixture
def cached(tmp_path: Path) -> CachedGate:
    """Return a gate with an empty cache."""
    return CachedGate(tmp_path)


@pytest.fixture
def channel() -> MemoryChannel:
    """Return a channel that no gate serves."""
    return MemoryChannel()


@pytest.fixture
def caller() -> Caller:
    """Return the caller of these tests."""
    return CALLER


@pytest.fixture
def gate_for() -> Callable[..., Gate]:
    """Return a function that makes a gate whose one group has the given rules."""

    def make(**grants: tuple[str, ...]) -> Gate:
        return gate_with(GroupPolicy.build("ci", **grants))

    return make


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Run a docker-registry with the images team/app and secret/app."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        running.push_image("team/app", "v1", b"layer of team/app")
        running.push_image("secret/app", "v1", b"layer of secret/app")
        yield running


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedRegistry:
    """A TCP server that responds by a script, and keeps what it receives."""

    endpoint: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)


Scripted = Callable[[Script], AbstractAsyncContextManager[ScriptedRegistry]]


@pytest.fixture
def scripted() -> Scripted:
    """Return a function that runs a registry which follows a script on each connection, then closes it."""

    @asynccontextmanager
    async def run(script: Script) -> AsyncIterator[ScriptedRegistry]:
        running = ScriptedRegistry()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running.connections += 1
            try:
                await script(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                running.lost.set()
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        running.endpoint = Endpoint(*server.sockets[0].getsockname()[:2])
        try:
            yield running
        finally:
            server.close()
            await server.wait_closed()

    return run
