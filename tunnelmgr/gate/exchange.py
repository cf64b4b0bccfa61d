"""One admitted request: carried to the registry, and its answer back.

A body goes out while its answer is already awaited, so that a registry which refuses early is heard. Then the rest of
the body is nobody's: the answer is passed on and the channel ends.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.oci import RegistryRequest, is_digest
from tunnelmgr.core.ports import Channel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import GateError, MalformedRequestError, RegistryUnavailableError
from tunnelmgr.gate.bodies import LAST_CHUNK, BodyReader, body_reader, encode_pieces
from tunnelmgr.gate.catalog import RegistryPage
from tunnelmgr.gate.head_encoder import encode_request_head, encode_response_head
from tunnelmgr.gate.head_parser import BodyFraming, Coding, ReceiveBuffer, RequestHead, ResponseHead
from tunnelmgr.gate.local_reply import CONTINUE
from tunnelmgr.gate.location_rewrite import rewrite_location
from tunnelmgr.gate.manifest import (
    MAX_MANIFEST,
    ManifestTooLargeError,
    PushedManifest,
    TaggedManifest,
    media_type,
)
from tunnelmgr.gate.registry_connection import RegistryConnection

# Docker's registry takes a manifest for missing unless its type is accepted, so all that it can store are named.
_ANY_MANIFEST: Final = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v1+prettyjws, application/vnd.docker.distribution.manifest.v1+json, "
    "*/*"
)
MAX_PAGE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that the gate waits."""

    idle: float = 120.0  # for the first byte of a request
    head: float = 10.0  # from there to its head's end
    body: float = 60.0  # for more of a body
    answer: float = 300.0  # for the registry's head (a manifest on S3 is slow), its body's next bytes, and taking them
    drain: float = 5.0  # for the rest of a refused body
    search: float = 30.0  # for what protected tags point to, before a delete


class AgentStalledError(GateError):
    """The agent stopped in the middle of what it sent or was to take."""

    code = "agent-stalled"


class ReadOnlyError(GateError):
    """The registry does not know the method, and says so in words that clients cannot read."""

    code = "replica-read-only"

    def __init__(self, method: str, target: Endpoint) -> None:
        super().__init__(
            f"the registry at {target} does not allow {method} here: it is a read-only replica or under maintenance "
            "(storage.maintenance.readonly), or lacks this operation"
        )


@dataclass(slots=True)
class Progress:
    """How far an exchange has come.

    `status` is that of the answer which the agent began to get, or 0; `unread` says that the agent may still be
    sending a body that nobody wants.
    """

    status: int = 0
    keep_alive: bool = True
    unread: bool = False


class Exchange:
    """The two directions of one request: `ask`, then `pass_back`."""

    def __init__(  # noqa: PLR0913 (the parties of the exchange, each once)
        self,
        *,
        agent: Channel,
        inbox: ReceiveBuffer,
        link: RegistryConnection,
        target: Endpoint,
        limits: Timeouts,
        progress: Progress,
    ) -> None:
        self._agent = agent
        self._inbox = inbox
        self._link = link
        self._target = target
        self._limits = limits
        self._progress = progress

    async def ask(self, head: RequestHead, request: RegistryRequest) -> ResponseHead:
        """Carry the request to the registry and return its answer's head.

        Raises RegistryUnavailableError, MalformedRequestError for broken chunks, AgentStalledError, and ConnectionError
        when the agent is gone.
        """
        wire = encode_request_head(head, request)
        if head.body.coding is Coding.NONE:
            return await self._link.ask(head.method, wire)
        return await self._upload(head, wire)

    async def pass_back(
        self, head: RequestHead, request: RegistryRequest, answer: ResponseHead, *, location: str | None = None
    ) -> None:
        """Carry the answer to the agent, with `location` for the registry's if given; raises as `ask` does."""
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED and head.method != "HEAD" and not _is_json(answer):
            raise ReadOnlyError(head.method, self._target)
        if location is None:
            location = rewrite_location(answer, request, head.host, self._target)
        if not head.keep_alive:
            self._progress.keep_alive = False
        close = not self._progress.keep_alive
        first = encode_response_head(answer, location=location, host=head.host, target=self._target, close=close)
        self._progress.status = answer.status
        try:
            async with asyncio.timeout(self._limits.answer) as limit:
                await self._pass_body(first, answer, limit)
        except TimeoutError as stalled:
            raise AgentStalledError("the answer could not be passed on in time") from stalled

    async def fetch(self, head: RequestHead, target: str) -> RegistryPage:
        """Get a page of the registry's that is not for the agent's eyes; raises RegistryUnavailableError."""
        try:
            return await self._fetch(head, target)
        except BaseException:
            self._link.abort()  # what is left of the answer must not be taken for the next one
            raise

    async def _fetch(self, head: RequestHead, target: str) -> RegistryPage:
        wire = f"GET {target} HTTP/1.1\r\nHost: {head.host}\r\nAccept: application/json\r\n\r\n"
        answer = await self._link.ask("GET", wire.encode())
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.answer), aclosing(self._link.body(answer)) as feeds:
                async for pieces in feeds:
                    body += b"".join(pieces)
                    if len(body) > MAX_PAGE:
                        raise RegistryUnavailableError(f"a page of the registry is longer than {MAX_PAGE} bytes")
        except TimeoutError as late:
            raise RegistryUnavailableError("a page of the registry did not come in time") from late
        return RegistryPage(answer.status, bytes(body), any(name == b"link" for name, _ in answer.fields))

    async def look_up(self, head: RequestHead, repository: str, tag: str) -> TaggedManifest | None:
        """Ask the registry what a tag points to, None if there is no such tag; raises RegistryUnavailableError."""
        target = f"/v2/{repository}/manifests/{tag}"
        wire = f"HEAD {target} HTTP/1.1\r\nHost: {head.host}\r\nAccept: {_ANY_MANIFEST}\r\n\r\n"
        answer = await self._link.ask("HEAD", wire.encode())
        self._link.finish(answer)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise RegistryUnavailableError(f"the registry answered {answer.status} when asked for tag {tag}")
        named = dict(answer.fields)
        digest = named.get(b"docker-content-digest", b"").decode("latin-1")
        return TaggedManifest(digest if is_digest(digest) else "", media_type(named.get(b"content-type", b"")))

    async def receive_manifest(self, head: RequestHead) -> PushedManifest:
        """Read the whole of a request's body; raises ManifestTooLargeError, and else as `ask` does."""
        if head.body.length > MAX_MANIFEST:
            raise ManifestTooLargeError
        await self._link.open()  # an agent whose registry is away is told so before it sends anything
        if head.expects_continue:
            await self._agent.write(CONTINUE)
        reader = body_reader(head.body, MalformedRequestError)
        manifest = PushedManifest(media_type(dict(head.fields).get(b"content-type", b"")))
        while not reader.done:
            data = b"" if reader.more else self._inbox.take_all() or await self._receive_body()
            for piece in reader.feed(data):
                manifest.add(piece)
            await self._agent.checkpoint()
        self._inbox.feed(reader.rest)
        return manifest

    async def ask_with(self, head: RequestHead, request: RegistryRequest, manifest: PushedManifest) -> ResponseHead:
        """Carry a request whose body has been read to the registry; returns and raises as `ask` does."""
        await self._link.open()
        shape = BodyFraming(Coding.COUNTED, len(manifest.content))
        wire = encode_request_head(replace(head, body=shape), request)
        return await self._hear_while(head, self._link.send(wire + manifest.content))

    async def _upload(self, head: RequestHead, wire: bytes) -> ResponseHead:
        await self._link.open()
        if head.expects_continue:
            await self._agent.write(CONTINUE)
        reader = body_reader(head.body, MalformedRequestError)
        chunked = head.body.coding is Coding.CHUNKED
        answer = await self._hear_while(head, self._send_body(reader, wire, chunked=chunked))
        if not reader.done:
            self._progress.keep_alive = False
            self._progress.unread = True
        return answer

    async def _hear_while(self, head: RequestHead, sends: Coroutine[None, None, None]) -> ResponseHead:
        """Send a request with its body while its answer is awaited already; returns the answer's head."""
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._agent.scheduled(_until_hung_up(sends)), name="gate body")
                answer = await self._link.receive_head(head.method, after=sending)
                # Not done yet, it waits for an agent or a registry that has nothing more to say.
                stopped = sending.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if stopped:
            self._link.end_with_answer()
        return answer

    async def _send_body(self, reader: BodyReader, wire: bytes, *, chunked: bool) -> None:
        await self._link.send(wire)
        data = self._inbox.take_all()
        while True:
            pieces = reader.feed(data)
            if reader.rest:
                self._inbox.feed(reader.rest)
            if wired := encode_pieces(pieces, chunked=chunked):
                await self._link.send(wired)
            if reader.done:
                break
            await self._agent.checkpoint()
            data = b"" if reader.more else await self._receive_body()
        if chunked:
            await self._link.send(LAST_CHUNK)

    async def _receive_body(self) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body):
                data = await self._agent.read()
        except TimeoutError as idle:
            raise AgentStalledError("the body stopped coming") from idle
        if not data:
            raise ConnectionAbortedError("the agent ended in the middle of a body")
        return data

    async def _pass_body(self, first: bytes, answer: ResponseHead, limit: asyncio.Timeout) -> None:
        clock = asyncio.get_running_loop().time
        extended = clock()

        def carried(_: int) -> None:
            """Move the deadline, now and then only: each move leaves a dead timer in the loop."""
            nonlocal extended
            if (now := clock()) - extended > self._limits.answer / 10:
                limit.reschedule(now + self._limits.answer)
                extended = now

        if answer.body.coding in {Coding.NONE, Coding.COUNTED}:
            await self._pass_counted(first, answer, carried)
        else:
            await self._pass_chunks(first, answer, carried)

    async def _pass_counted(self, first: bytes, answer: ResponseHead, carried: Callable[[int], None]) -> None:
        """Send what has arrived of the body along with its head, and pour the rest."""
        arrived = self._link.arrived(answer.body.length)
        await self._agent.write(first + arrived)
        if left := answer.body.length - len(arrived):
            await self._link.pour(self._agent, left, carried)
        self._link.finish(answer)

    async def _pass_chunks(self, first: bytes, answer: ResponseHead, carried: Callable[[int], None]) -> None:
        unsent = first
        async with aclosing(self._link.body(answer)) as feeds:
            async for pieces in feeds:
                await self._agent.write(unsent + encode_pieces(pieces, chunked=True))
                unsent = b""
                carried(0)
        await self._agent.write(unsent + LAST_CHUNK)


async def _until_hung_up(sends: Coroutine[None, None, None]) -> None:
    """Send until the registry hangs up: it may have answered before, and who waits for the answer will know."""
    with suppress(RegistryUnavailableError):
        await sends


def _is_json(answer: ResponseHead) -> bool:
    return media_type(dict(answer.fields).get(b"content-type", b"")) == b"application/json"
