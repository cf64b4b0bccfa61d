"""Fixtures of the gate's tests: a channel in memory, a real docker-registry, and a registry that follows a script."""

import asyncio
import hashlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h11
import pytest

from lab.gate_stand_ins import gate_with
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.ports import ByteSource
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.fair_queue import Share, fair_queue
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.traffic import Traffic

DEADLINE = 10.0
CALLER = Caller(AgentId("static:builder-1"), "builder-1", "ci", "registry-1", "127.0.0.1:5000")
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


class Records:
    """A request log that keeps its records in memory."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []
        self.throttled: list[AgentId] = []
        self.failure: str | None = None

    def record(self, request: RequestRecord) -> None:
        """Keep one."""
        self.all.append(request)

    async def throttle(self, agent: AgentId) -> None:
        """Keep which agent was to wait."""
        self.throttled.append(agent)

    def outage(self) -> str | None:
        """Return the outage that the test has set."""
        return self.failure


class MemoryChannel:
    """A `Channel` in memory; the test acts as the agent's side."""

    def __init__(self) -> None:
        self.checkpoints = 0
        self.incoming: asyncio.Queue[bytes | ConnectionError] = asyncio.Queue()
        self.outgoing = bytearray()
        self.ended = False
        self.closed = False
        self.aborted = False
        self.stalled = False
        self.gone = False
        self.changed = asyncio.Condition()
        self.largest_write = 0
        self.draining = asyncio.Event()
        self.seen: list[bytes | ConnectionError] = []

    def scheduled(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Run the coroutine's steps in turn with those of others, as a tunnel's channel does."""
        return Share(fair_queue(asyncio.get_running_loop())).scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let other tasks run."""
        self.checkpoints += 1
        await asyncio.sleep(0)

    async def wanted(self) -> bool:
        """Wait until the agent sends something, or the tunnel drains."""
        if not self.seen:
            async with asyncio.TaskGroup() as waits:
                sent = waits.create_task(self.incoming.get(), name="sent")
                draining = waits.create_task(self.draining.wait(), name="draining")
                await asyncio.wait((sent, draining), return_when=asyncio.FIRST_COMPLETED)
                draining.cancel()
                if not sent.done():
                    sent.cancel()
                    return False
            self.seen.append(sent.result())
        return self.seen[0] != b""

    async def read(self) -> bytes:
        """Return what the agent sent."""
        arrived = self.seen.pop() if self.seen else await self.incoming.get()
        if isinstance(arrived, ConnectionError):
            raise arrived
        if not arrived:
            self.incoming.put_nowait(b"")
        return arrived

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Give the agent data."""
        if self.gone or self.aborted:
            raise ConnectionResetError
        if self.stalled:
            await asyncio.get_running_loop().create_future()
        self.largest_write = max(self.largest_write, len(data))
        async with self.changed:
            self.outgoing += data
            self.changed.notify_all()

    async def send_from(self, source: ByteSource, limit: int, carried: Callable[[int], None]) -> int:
        """Give the agent what comes from a source, in pieces of 64 KiB."""
        room, left = memoryview(bytearray(65536)), limit
        readable = asyncio.Event()
        source.notify_readable(readable.set)
        try:
            while left and (count := source.receive_into((room[: min(left, 65536)],))) != 0:
                if count is None:
                    readable.clear()
                    await readable.wait()
                    continue
                await self.write(bytes(room[:count]))
                left -= count
                carried(count)
        finally:
            source.notify_readable(None)
        return limit - left

    def write_eof(self) -> None:
        """Remember that nothing more follows."""
        self.ended = True

    def close(self) -> None:
        """Remember the close."""
        self.closed = True

    def abort(self) -> None:
        """Remember the abort."""
        self.aborted = True

    def send(self, data: bytes) -> None:
        """Send as the agent."""
        self.incoming.put_nowait(data)

    def end(self) -> None:
        """End the agent's direction."""
        self.incoming.put_nowait(b"")

    def reset(self) -> None:
        """Lose the agent."""
        self.incoming.put_nowait(ConnectionResetError())


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
    """Open a channel through a gate to a registry; at the end the agent closes it, and the session must end."""

    @asynccontextmanager
    async def open_channel(
        gate: Gate, target: Endpoint, agent_id: AgentId = CALLER.agent
    ) -> AsyncIterator[Conversation]:
        channel, traffic = MemoryChannel(), Traffic()
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(
                gate.serve(channel, replace(CALLER, agent=agent_id), target, traffic), name="gate session"
            )
            conversation = Conversation(channel, traffic, serving)
            yield conversation
            channel.end()
            await conversation.finished()
        assert traffic.channels == 0
        assert channel.closed

    return open_channel


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


@dataclass
class Registry:
    """A running docker-registry, which the test can also reach directly."""

    endpoint: Endpoint
    folder: Path

    def access_log(self) -> str:
        """Return the access log, one line for each request."""
        return (self.folder / "access.log").read_text()

    def ask(self, method: str, target: str, body: bytes = b"", kind: str = "") -> tuple[int, dict[str, str], bytes]:
        """Send a request past the gate."""
        connection = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port, timeout=DEADLINE)
        try:
            headers = {"Content-Type": kind} if kind else {}
            headers["Accept"] = MANIFEST_TYPE
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def push_blob(self, repository: str, content: bytes) -> str:
        """Push a blob and return its digest."""
        digest = digest_of(content)
        _, headers, _ = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        target = headers["location"].partition(str(self.endpoint))[2]
        status, _, _ = self.ask("PUT", f"{target}&digest={digest}", content, "application/octet-stream")
        assert status == http.client.CREATED
        return digest

    def push_image(self, repository: str, tag: str, layer: bytes) -> str:
        """Push an image of one layer and return its digest."""
        manifest = self.manifest(repository, layer)
        status, headers, _ = self.ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, MANIFEST_TYPE)
        assert status == http.client.CREATED
        return headers["docker-content-digest"]

    def manifest(self, repository: str, layer: bytes) -> bytes:
        """Push an image's blobs and return its manifest."""
        config = self.push_blob(repository, b"{}")
        pushed = self.push_blob(repository, layer)
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": 2,
                    "digest": config,
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(layer),
                        "digest": pushed,
                    }
                ],
            }
        ).encode()


def digest_of(content: bytes) -> str:
    """Return the digest of a blob."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def running_registry(
    folder: Path, *, read_only: bool = False, deletes: bool = True, host: str = ""
) -> Iterator[Registry]:
    """Run a real docker-registry on a free loopback port; `folder/access.log` has one line for each request.

    `host` is the setting `http.host`; the registry puts it into every Location.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", probe.getsockname()[1])
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "content")},
            "delete": {"enabled": deletes},
            "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": read_only}},
        },
        "http": {"addr": str(endpoint)} | ({"host": host} if host else {}),
    }
    config = folder / ("read-only.json" if read_only else "registry.json")
    config.write_text(json.dumps(settings))
    with (
        (folder / "access.log").open("ab") as output,
        (folder / "error.log").open("ab") as errors,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=output,
            stderr=errors,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        ) as process,
    ):
        try:
            _wait_for(endpoint, process)
            yield Registry(endpoint, folder)
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Run a docker-registry with the images team/app and secret/app."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        running.push_image("team/app", "v1", b"layer of team/app")
        running.push_image("secret/app", "v1", b"layer of secret/app")
        yield running


def _wait_for(endpoint: Endpoint, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection((endpoint.host, endpoint.port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


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
