"""One channel's session: reads requests one after another, and ends each in a response and a record.

`gate/__init__.py` has the states of a session and what they guarantee.
"""

from http import HTTPStatus
from typing import Final

import structlog

from tunnelmgr.core.tunnel import Forward
from tunnelmgr.deadline import Deadline
from tunnelmgr.errors import GateError, MalformedRequestError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.exchange import AgentStalledError, ReadOnlyError
from tunnelmgr.gate.group_limiter import RETRY_AFTER, LimitExceededError
from tunnelmgr.gate.head_parser import ParseBuffer, RequestHead, parse_request_head
from tunnelmgr.gate.in_flight import RequestInFlight
from tunnelmgr.gate.local_reply import LocalReply, refusal
from tunnelmgr.gate.location_rewrite import RedirectedElsewhereError, UnusableLocationError
from tunnelmgr.gate.request_handler import RequestHandler
from tunnelmgr.gate.request_state import RequestState
from tunnelmgr.gate.traffic import MeteredChannel

MAX_DISCARDED: Final = 1024 * 1024
"""Bytes of a refused body that are read and discarded, so that the agent gets to read the refusal."""
TLS_HANDSHAKE: Final = b"\x16\x03"
"""The first bytes of every TLS connection (RFC 8446, section 5.1)."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Session:
    """One channel and its connections to the registry."""

    def __init__(self, context: GateContext, agent: MeteredChannel, caller: Caller, forward: Forward) -> None:
        self._context = context
        self._agent = agent
        self._inbox = ParseBuffer(MalformedRequestError)
        self._deadline = Deadline()
        self._handler = RequestHandler(context, agent, self._inbox, self._deadline, caller, forward)
        self._probed = False
        self._recorded = (0, 0)  # bytes to and from the agent that earlier records contain

    async def run(self) -> None:
        """Serve requests until one of them is the last."""
        while await self._has_request():
            await self._agent.checkpoint()
            if not await self._serve_request():
                break

    def close(self) -> None:
        """Close the connections to the registry at once."""
        self._deadline.close()
        self._handler.abort()

    async def _has_request(self) -> bool:
        """Wait for the first byte of a request."""
        if self._inbox:
            return True
        try:
            with self._deadline.within(self._context.timeouts.idle):
                if not await self._is_wanted():
                    return False
                data = await self._agent.read()
        except TimeoutError:
            return False
        if data.startswith(TLS_HANDSHAKE):
            await self._refuse_tls()
            return False
        self._inbox.feed(data)
        return bool(data)

    async def _is_wanted(self) -> bool:
        """Wait until there is something to read; probes that need no answer are taken meanwhile."""
        if not self._probed:
            return await self._agent.wanted()
        self._agent.intercept(self._take_probe)
        try:
            return await self._agent.wanted()
        finally:
            self._agent.intercept(None)  # also at the end: the channel would refer to its session, and that to it

    def _take_probe(self, data: bytes) -> bool:
        """Take a probe that needs no answer; it costs the session no turn."""
        taken = self._handler.take_probe(data)
        if taken:
            self._deadline.extend(self._context.timeouts.idle)
        return taken

    async def _refuse_tls(self) -> None:
        """Refuse a TLS handshake, which clients try before plain HTTP; it is not a request, so it is not recorded."""
        message = "this is plain HTTP, and the tunnel around it is encrypted: use http, not https"
        await self._send(refusal(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", message, close=True), None, RequestState())
        await self._drain()

    async def _serve_request(self) -> bool:
        """Serve one request; returns whether another may follow."""
        state = RequestState()
        in_flight = RequestInFlight(self._handler, self._agent, state, *self._recorded)
        self._context.in_flight.add(in_flight)
        try:
            await self._respond(state)
        finally:
            self._context.in_flight.discard(in_flight)
            if state.status or state.request is not None:
                self._record(state)
        await self._context.requests.throttle(self._handler.caller.agent)
        return state.keep_alive

    async def _respond(self, state: RequestState) -> None:
        """Respond to the next request: with the registry's response, with a reply, or by ending the channel."""
        head: RequestHead | None = None
        reply: LocalReply | None
        try:
            raw = await self._read_head()
            if raw is None:
                state.keep_alive = False
                return
            reply = self._handler.reply_to_probe(raw, state)
            self._probed = reply is not None
            if reply is None:
                head = parse_request_head(raw)
                state.method = head.method
                reply = await self._handler.handle(head, state)
        except GateError as failed:
            reply = self._reply_to_failure(failed, head, state)
        if reply is not None and state.status:
            # The agent is reading another response already; only the end of the channel shows that it is incomplete.
            state.keep_alive = False
            return
        if reply is not None:
            await self._send(reply, head, state)
        if state.unread:
            await self._drain()

    async def _read_head(self) -> bytes | None:
        """Return the next request's head, or None if the agent closed its side before the head was complete."""
        if (raw := self._inbox.take_head()) is not None:
            return raw
        timeout = self._context.timeouts.head
        try:
            with self._deadline.within(timeout):
                while (raw := self._inbox.take_head()) is None:
                    data = await self._agent.read()
                    if not data:
                        return None
                    self._inbox.feed(data)
        except TimeoutError as late:
            raise AgentStalledError(f"the request's head did not arrive within {timeout:g} s") from late
        return raw

    def _reply_to_failure(self, failed: GateError, head: RequestHead | None, state: RequestState) -> LocalReply:
        """Turn an error into a reply, and drop the connections to the registry, which may be in any state."""
        self._handler.abort()
        retry_after = 0
        match failed:
            case MalformedRequestError():
                return refusal(HTTPStatus.BAD_REQUEST, failed.oci_code, str(failed), close=True)
            case AgentStalledError():
                return refusal(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", str(failed), close=True)
            case LimitExceededError():
                status, code, retry_after = HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS", RETRY_AFTER
            case ReadOnlyError():
                status, code = HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED"
            case RedirectedElsewhereError() | UnusableLocationError():
                status, code = HTTPStatus.BAD_GATEWAY, "UNAVAILABLE"
            case _:
                status, code = HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"
        state.failure = failed
        close = head is None or head.ends_channel
        return refusal(status, code, str(failed), close=close, retry_after=retry_after)

    async def _send(self, reply: LocalReply, head: RequestHead | None, state: RequestState) -> None:
        state.start_response(reply.status)
        state.keep_alive = not reply.close
        try:
            with self._deadline.within(self._context.timeouts.response):
                await self._agent.write(reply.encode(without_body=head is not None and head.method == "HEAD"))
        except TimeoutError:
            state.keep_alive = False
        else:
            state.unread = reply.close

    async def _drain(self) -> None:
        """Discard what the agent still sends: its side would otherwise reset before it has read the reply."""
        self._agent.write_eof()
        left = MAX_DISCARDED
        try:
            with self._deadline.within(self._context.timeouts.drain):
                while left > 0 and (data := await self._agent.read()):
                    left -= len(data)
        except TimeoutError:
            log.debug("refused body not ended by agent", agent=self._handler.caller.agent)

    def _record(self, state: RequestState) -> None:
        sent, received = self._recorded
        self._recorded = self._agent.to_agent, self._agent.from_agent
        record = state.to_record(
            self._handler.caller,
            bytes_to_agent=self._agent.to_agent - sent,
            bytes_from_agent=self._agent.from_agent - received,
        )
        self._context.requests.record(record)
