"""One authorized request: forwarded to the registry, and the registry's response forwarded to the agent.

A body is sent while its response is already awaited, so that a registry can refuse early. The agent then gets the
response, and the channel ends, since the unsent part of the body is still to come on it.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.ports import ByteSource, Channel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.deadline import Deadline
from tunnelmgr.errors import GateError, MalformedRequestError, RegistryUnavailableError
from tunnelmgr.gate.bodies import LAST_CHUNK, BodyReader, body_reader, encode_pieces
from tunnelmgr.gate.head_encoder import encode_request_head, encode_response_head
from tunnelmgr.gate.head_parser import BodyFraming, Coding, ParseBuffer, RequestHead, ResponseHead
from tunnelmgr.gate.local_reply import CONTINUE
from tunnelmgr.gate.location_rewrite import rewrite_location
from tunnelmgr.gate.manifest import MAX_MANIFEST, ManifestTooLargeError, PushedManifest, media_type
from tunnelmgr.gate.registry_connection import RegistryConnection
from tunnelmgr.gate.registry_pool import Answer
from tunnelmgr.gate.request_state import RequestState
from tunnelmgr.gate.timeouts import Timeouts


class AgentStalledError(GateError):
    """The agent stopped in the middle of a request, or stopped reading a response."""

    code = "agent-stalled"


class ReadOnlyError(GateError):
    """The registry takes no pushes: by the forward's `writer`, or by a response that clients cannot read."""

    code = "replica-read-only"

    def __init__(self, method: str, target: Endpoint, writer: str = "") -> None:
        refused = f"the registry at {target} does not allow {method} here: it is a read-only replica"
        cause = " or under maintenance (storage.maintenance.readonly), or lacks this operation"
        super().__init__(f"{refused}; use {writer} for that" if writer else refused + cause)


class CorruptContentError(GateError):
    """The registry sent other content than the requested digest's; the agent did not get its last byte."""

    code = "registry-corrupt"

    def __init__(self, target: Endpoint) -> None:
        super().__init__(f"the registry at {target} sent content with another digest")


class StoredBytes(ByteSource, Protocol):
    """A content that may end early; `cache/content.py` implements it."""

    position: int
    """Where the next byte is in the whole content."""

    @property
    def corrupt(self) -> bool:
        """Whether it ends early because the registry sent other content than the digest's."""
        ...

    async def started(self) -> bool:
        """Wait for the first byte; returns False if none will come. The caller sets the deadline."""
        ...


class Exchange:
    """The two directions of one request: `forward_request` or `forward_manifest`, then `forward_response`."""

    def __init__(  # noqa: PLR0913 (the parties of the exchange, each once)
        self,
        *,
        agent: Channel,
        inbox: ParseBuffer,
        connection: RegistryConnection,
        target: Endpoint,
        timeouts: Timeouts,
        deadline: Deadline,
        state: RequestState,
    ) -> None:
        self._agent = agent
        self._inbox = inbox
        self._connection = connection
        self._target = target
        self._timeouts = timeouts
        self._deadline = deadline
        self._state = state

    # --- the request ---

    async def forward_request(self, head: RequestHead, request: RegistryRequest) -> ResponseHead:
        """Send the request, with its body as it arrives, and return the head of the registry's response.

        Raises RegistryUnavailableError, MalformedRequestError for invalid chunks, AgentStalledError, and
        ConnectionError if the agent is gone.
        """
        encoded = encode_request_head(head, request, self._state.traceparent)
        if head.body.coding is Coding.NONE:
            return await self._connection.round_trip(head.method, encoded)
        return await self._forward_with_body(head, encoded)

    async def read_manifest(self, head: RequestHead) -> PushedManifest:
        """Read the request's body whole; raises ManifestTooLargeError, and otherwise as `forward_request` does."""
        if head.body.length > MAX_MANIFEST:
            raise ManifestTooLargeError
        await self._connection.open()  # if the registry is unavailable, the agent need not send the body
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

    async def forward_manifest(
        self, head: RequestHead, request: RegistryRequest, manifest: PushedManifest
    ) -> ResponseHead:
        """Send a request whose body has been read already; returns and raises as `forward_request` does."""
        await self._connection.open()
        framing = BodyFraming(Coding.COUNTED, len(manifest.content))
        encoded = encode_request_head(replace(head, body=framing), request, self._state.traceparent)
        return await self._receive_head_while(head, self._connection.send(encoded + manifest.content))

    async def _forward_with_body(self, head: RequestHead, encoded: bytes) -> ResponseHead:
        await self._connection.open()
        if head.expects_continue:
            await self._agent.write(CONTINUE)
        reader = body_reader(head.body, MalformedRequestError)
        chunked = head.body.coding is Coding.CHUNKED
        response = await self._receive_head_while(head, self._send_body(reader, encoded, chunked=chunked))
        if not reader.done:
            self._state.keep_alive = False
            self._state.unread = True
        return response

    async def _receive_head_while(self, head: RequestHead, sending: Coroutine[None, None, None]) -> ResponseHead:
        """Wait for the response's head while the request is being sent; a response ends the sending."""
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(self._agent.scheduled(_send_until_closed(sending)), name="gate body")
                response = await self._connection.receive_head(head.method, after=task)
                # If it is not done yet, it waits for the agent's body or for the registry to take more of it.
                cancelled = task.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if cancelled:
            self._connection.close_after_response()
        return response

    async def _send_body(self, reader: BodyReader, encoded: bytes, *, chunked: bool) -> None:
        await self._connection.send(encoded)
        data = self._inbox.take_all()
        while True:
            # Before the bytes are sent on: once the last ones are, the response may end this task at any moment.
            await self._agent.checkpoint()
            pieces = reader.feed(data)
            if reader.rest:
                self._inbox.feed(reader.rest)
            if encoded_pieces := encode_pieces(pieces, chunked=chunked):
                await self._connection.send(encoded_pieces)
            if reader.done:
                break
            data = b"" if reader.more else await self._receive_body()
        if chunked:
            await self._connection.send(LAST_CHUNK)

    async def _receive_body(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeouts.body):
                data = await self._agent.read()
        except TimeoutError as idle:
            raise AgentStalledError(f"no more of the body arrived within {self._timeouts.body:g} s") from idle
        if not data:
            raise ConnectionAbortedError("the agent closed its side in the middle of a body")
        return data

    # --- the response ---

    async def forward_response(
        self, head: RequestHead, request: RegistryRequest, response: ResponseHead, *, location: str | None = None
    ) -> None:
        """Send the response to the agent, with `location` instead of its own if given.

        Raises as `forward_request` does, and ReadOnlyError for a 405 that clients cannot read.
        """
        encoded = self._encode_head(head, request, response, location)
        try:
            with self._deadline.within(self._timeouts.response):
                await self._forward_body(encoded, response)
        except TimeoutError as stalled:
            raise self._stalled() from stalled

    async def forward_answer(self, head: RequestHead, request: RegistryRequest, answer: Answer) -> None:
        """Send a response that was read whole; raises as `forward_response` does."""
        encoded = self._encode_head(head, request, answer.head, None)
        try:
            with self._deadline.within(self._timeouts.response):
                await self._agent.write(encoded + answer.body)
        except TimeoutError as stalled:
            raise self._stalled() from stalled

    async def forward_content(
        self, head: RequestHead, request: RegistryRequest, response: ResponseHead, source: StoredBytes, end: int
    ) -> bool:
        """Send a response whose body is read from the cache; what that fails to give, the registry does.

        Returns False, and sends nothing, if the cache gives no byte: some registries answer without ranges, or with
        another form of body than their answer to HEAD promised. `end` is where the last byte is followed, in the whole
        content. Raises as `forward_response` does.
        """
        try:
            with self._deadline.within(self._timeouts.response):
                if not await source.started():
                    return False
                await self._agent.write(self._encode_head(head, request, response, None))
                await self._agent.send_from(source, end - source.position, self._extend)
                if source.corrupt:
                    raise CorruptContentError(self._target)
                if source.position < end:
                    await self._forward_rest(head, request, source.position, end)
        except TimeoutError as stalled:
            raise self._stalled() from stalled
        return True

    async def _forward_rest(self, head: RequestHead, request: RegistryRequest, start: int, end: int) -> None:
        """Send the rest of a content from the registry; raises RegistryUnavailableError if it sends anything else."""
        kept = tuple(field for field in head.fields if field[0] != b"range")
        ranged = replace(head, fields=(*kept, (b"range", b"bytes=%d-%d" % (start, end - 1))))
        response = await self._connection.round_trip(head.method, encode_request_head(ranged, request))
        named = dict(response.fields)
        fits = named.get(b"content-range", b"").startswith(b"bytes %d-%d/" % (start, end - 1))
        if response.status != HTTPStatus.PARTIAL_CONTENT or not fits or response.body.length != end - start:
            raise RegistryUnavailableError(
                f"the cache failed at byte {start} of a blob, and the registry at {self._target} did not answer with "
                f"the rest, but with {response.status}"
            )
        await self._forward_counted(b"", response)

    def _encode_head(
        self, head: RequestHead, request: RegistryRequest, response: ResponseHead, location: str | None
    ) -> bytes:
        """Return the head for the agent; from here on, the response counts as started."""
        if response.status == HTTPStatus.METHOD_NOT_ALLOWED and head.method != "HEAD" and not _is_json(response):
            raise ReadOnlyError(head.method, self._target)
        if location is None:
            location = rewrite_location(response, request, head.host, self._target)
        if not head.keep_alive:
            self._state.keep_alive = False
        close = not self._state.keep_alive
        encoded = encode_response_head(response, location=location, host=head.host, target=self._target, close=close)
        self._state.start_response(response.status)
        return encoded

    def _stalled(self) -> AgentStalledError:
        return AgentStalledError(f"the response made no progress for {self._timeouts.response:g} s")

    async def _forward_body(self, encoded: bytes, response: ResponseHead) -> None:
        if response.body.coding in {Coding.NONE, Coding.COUNTED}:
            await self._forward_counted(encoded, response)
        else:
            await self._forward_chunks(encoded, response)

    def _extend(self, _: int) -> None:
        """Move the deadline, since the response makes progress."""
        self._deadline.extend(self._timeouts.response)

    async def _forward_counted(self, encoded: bytes, response: ResponseHead) -> None:
        """Send the head with what has arrived of the body, then the remaining body straight from the socket."""
        received = self._connection.take_received(response.body.length)
        await self._agent.write(encoded + received)
        if left := response.body.length - len(received):
            await self._connection.send_to(self._agent, left, self._extend)
        self._connection.finish(response)

    async def _forward_chunks(self, encoded: bytes, response: ResponseHead) -> None:
        unsent = encoded
        async with aclosing(self._connection.stream_body(response)) as feeds:
            async for pieces in feeds:
                await self._agent.write(unsent + encode_pieces(pieces, chunked=True))
                unsent = b""
                self._extend(0)
        await self._agent.write(unsent + LAST_CHUNK)


async def _send_until_closed(sending: Coroutine[None, None, None]) -> None:
    """Send until the registry closes the connection: it may have responded before, so `receive_head` decides."""
    with suppress(RegistryUnavailableError):
        await sending


def _is_json(response: ResponseHead) -> bool:
    return media_type(dict(response.fields).get(b"content-type", b"")) == b"application/json"
