"""The gate: one channel's requests, one after another, each judged by its group's policy.

- A session is a bulkhead: whatever goes wrong ends in an answer or in a closed channel, and the registry's connection
  never outlives it. An exception that escaped would close the agent's whole SSH connection.
- Cancellation is revocation: both sides are aborted at once.
- The policy of the agent's present group is asked for at every request, so a reload applies to channels that are open,
  also one that moves the agent to another group.
- Requests are served one at a time; what an agent pipelines waits unread.
- The controller's own probe is known by its exact bytes, which saves reading it: probes are most of what an idle
  controller does.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import WELL_KNOWN_PATH, RegistryAction, classify, probe_request
from tunnelmgr.core.policy import GroupPolicy, decide, may_see
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import GateClosedError, GateError, MalformedRequestError
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.caller import Caller, NoRequestLog, RequestLog
from tunnelmgr.gate.catalog import CatalogSearch
from tunnelmgr.gate.concurrency_limit import ConcurrencyLimit
from tunnelmgr.gate.delete import DeleteHandler
from tunnelmgr.gate.exchange import AgentStalledError, Exchange, Progress, ReadOnlyError, Timeouts
from tunnelmgr.gate.head_parser import Coding, ReceiveBuffer, RequestHead, has_form_body, parse_request_head
from tunnelmgr.gate.local_reply import LocalReply, refusal
from tunnelmgr.gate.location_rewrite import RedirectedElsewhereError, UnusableLocationError
from tunnelmgr.gate.push import MAX_BUFFERED_MANIFESTS, PushHandler
from tunnelmgr.gate.registry_connection import MAX_PENDING_REQUESTS, RegistryConnection
from tunnelmgr.gate.request_record import PendingRecord
from tunnelmgr.gate.tag_locks import TagLocks
from tunnelmgr.gate.traffic import MeteredChannel, Traffic
from tunnelmgr.gate.uploads import Uploads

MAX_DISCARDED: Final = 1024 * 1024
"""Bytes of a refused body that are read and thrown away, so that the agent gets to read its answer."""
TLS_HANDSHAKE: Final = b"\x16\x03"
"""How every TLS connection begins (RFC 8446, section 5.1)."""
_HEAD_END: Final = b"\r\n\r\n"
_PROBE: Final = classify("GET", WELL_KNOWN_PATH)
_NONCE: Final = re.compile(rb"[0-9A-Fa-f]{1,128}")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

Proof = Callable[[str, Caller], str]
"""From a nonce and its caller to a text that only this controller can make."""


@dataclass(slots=True, kw_only=True)
class Gate:
    """Serves channels of forwards with protocol `registry`.

    `policy` gives the policy of the group that an agent is in now, `proof` answers the probe, `requests` takes the
    record of every request. `closed` says why nothing may pass right now, None when all is well.
    """

    policy: Callable[[AgentId], GroupPolicy]
    proof: Proof
    requests: RequestLog = field(default_factory=NoRequestLog)
    closed: Callable[[], str | None] = lambda: None
    limits: Timeouts = field(default_factory=Timeouts)
    uploads: Uploads = field(default_factory=Uploads)
    writing: TagLocks = field(default_factory=TagLocks)
    slots: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(MAX_PENDING_REQUESTS))
    reading: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(MAX_BUFFERED_MANIFESTS))
    searching: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(1))

    async def serve(self, channel: AgentChannel, caller: Caller, target: Endpoint, traffic: Traffic) -> None:
        """Serve one channel until it ends; raises nothing but CancelledError."""
        agent = MeteredChannel(channel, traffic)
        session = Session(self, agent, caller, target)
        try:
            await session.run()
        except ConnectionError:
            log.debug("agent ended its channel", agent=caller.agent)
        except Exception:
            log.exception("gate session failed", agent=caller.agent, error=GateError.code)
        except BaseException:
            channel.abort()
            raise
        finally:
            session.link.abort()
            channel.close()
            agent.uncount()


class Session:
    """One channel and its connection to the registry."""

    def __init__(self, gate: Gate, agent: MeteredChannel, caller: Caller, target: Endpoint) -> None:
        limits = gate.limits
        self.link = RegistryConnection(
            target, gate.slots.of(caller.agent), head_timeout=limits.answer, idle_timeout=limits.answer
        )
        self._gate = gate
        self._agent = agent
        self._caller = caller
        self._target = target
        self._inbox = ReceiveBuffer(MalformedRequestError)
        self._pushing = PushHandler(gate.uploads, gate.writing, gate.reading.of(caller.agent), caller.agent, target)
        self._deleting = DeleteHandler(gate.writing, gate.searching.of(caller.agent), target, limits.search)
        self._log = log.bind(agent=caller.agent)
        self._recorded = (0, 0)
        self._question = probe_request(caller.listener, "").removesuffix(_HEAD_END)

    async def run(self) -> None:
        """Serve requests until one of them is the last."""
        while await self._has_request():
            await self._agent.checkpoint()
            if not await self._serve_request():
                break

    async def _has_request(self) -> bool:
        """Wait for a request's first byte."""
        if self._inbox:
            return True
        try:
            async with asyncio.timeout(self._gate.limits.idle):
                if not await self._agent.wanted():
                    return False
                data = await self._agent.read()
        except TimeoutError:
            return False
        if data.startswith(TLS_HANDSHAKE):
            await self._decline_tls()
            return False
        self._inbox.feed(data)
        return bool(data)

    async def _decline_tls(self) -> None:
        """Tell a client that tries HTTPS first, as they do, to go on without; it has asked for nothing yet."""
        message = "this is plain HTTP; the tunnel around it is encrypted"
        progress = Progress()
        await self._tell(refusal(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", message, close=True), None, progress)
        await self._drain()

    async def _serve_request(self) -> bool:
        """Serve one request; returns whether another may follow."""
        began = time.monotonic()  # finer than uvloop's, which counts milliseconds
        entry, progress = PendingRecord(), Progress()
        try:
            await self._attempt(entry, progress)
        finally:
            if progress.status or entry.request is not None:
                self._record(entry, progress, took=time.monotonic() - began)
        await self._gate.requests.settle(self._caller.agent)
        return progress.keep_alive

    async def _attempt(self, entry: PendingRecord, progress: Progress) -> None:
        """LocalReply the next request, whatever it is and whatever comes of it."""
        head: RequestHead | None = None
        answer: LocalReply | None
        try:
            raw = await self._read_head()
            if raw is None:
                progress.keep_alive = False
                return
            if (nonce := self._probe_nonce(raw)) is not None:
                answer = self._answer_probe(nonce, entry)
            else:
                head = parse_request_head(raw)
                entry.method = head.method
                answer = await self._answer(head, entry, progress)
        except GateError as failed:
            answer = self._failure(failed, head, entry)
        if answer is not None and progress.status:
            # The agent already reads another answer; only the end of the channel can tell it that this one broke.
            progress.keep_alive = False
            return
        if answer is not None:
            await self._tell(answer, head, progress)
        if progress.unread:
            await self._drain()

    async def _read_head(self) -> bytes | None:
        """Return the next request's head, or None when the agent ended before it was whole."""
        if (raw := self._inbox.take_head()) is not None:
            return raw
        try:
            async with asyncio.timeout(self._gate.limits.head):
                while (raw := self._inbox.take_head()) is None:
                    data = await self._agent.read()
                    if not data:
                        return None
                    self._inbox.feed(data)
        except TimeoutError as late:
            raise AgentStalledError("the head did not come in time") from late
        return raw

    async def _answer(self, head: RequestHead, entry: PendingRecord, progress: Progress) -> LocalReply | None:
        """Judge one request and carry it through; returns the gate's own answer if it gives one."""
        close = head.ends_channel
        policy = self._present_policy()
        request = entry.request = classify(head.method, head.target)
        if head.body.coding is not Coding.NONE and has_form_body(head):
            message = "a registry takes blobs and manifests, not forms"
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED", message, close=close)
        verdict = decide(request, policy)
        entry.judge(verdict)
        if not verdict.allowed:
            return refusal(HTTPStatus.FORBIDDEN, "DENIED", verdict.reason, close=close)
        if request.action is RegistryAction.WELL_KNOWN:
            return LocalReply(HTTPStatus.OK, self._identity(head), close)
        if (why := self._gate.closed()) is not None:
            raise GateClosedError(why)
        return await self._carry(AuthorizedRequest(head, request, policy, entry, self._exchange(progress)))

    async def _carry(self, permitted: AuthorizedRequest) -> LocalReply | None:
        """Carry a permitted request through; returns the gate's own answer if it gives one."""
        head, request, exchange = permitted.head, permitted.request, permitted.exchange
        match request.action:
            case RegistryAction.CATALOG:
                search = CatalogSearch(
                    fetch=partial(exchange.fetch, head),
                    visible=partial(may_see, policy=permitted.policy),
                    checkpoint=self._agent.checkpoint,
                    turn=self._gate.searching.of(self._caller.agent),
                )
                return await search.page(request, close=head.ends_channel)
            case RegistryAction.PUSH:
                return await self._pushing.carry(permitted)
            case RegistryAction.DELETE:
                return await self._deleting.carry(permitted)
        await exchange.pass_back(head, request, await exchange.ask(head, request))
        return None

    def _probe_nonce(self, raw: bytes) -> str | None:
        """Return the nonce of the controller's probe, None where this is another request, or is written otherwise."""
        if not raw.startswith(self._question):
            return None
        nonce = _NONCE.fullmatch(raw, len(self._question), len(raw) - len(_HEAD_END))
        return None if nonce is None else nonce[0].decode("ascii")

    def _answer_probe(self, nonce: str, entry: PendingRecord) -> LocalReply:
        entry.method, entry.request = _PROBE.method, _PROBE
        entry.judge(decide(_PROBE, self._present_policy()))  # allowed to all
        return LocalReply(HTTPStatus.OK, self._proof(nonce), close=False)

    def _proof(self, nonce: str) -> dict[str, object]:
        self._agent.uncount()  # the controller's own: it keeps the channel open from one probe to the next
        return self._told() | {"proof": self._gate.proof(nonce, self._caller)}

    def _present_policy(self) -> GroupPolicy:
        """Return the policy of the group that the agent is in now; what follows is recorded under that group."""
        policy = self._gate.policy(self._caller.agent)
        if policy.group != self._caller.group:
            self._caller = replace(self._caller, group=policy.group)
        return policy

    def _exchange(self, progress: Progress) -> Exchange:
        return Exchange(
            agent=self._agent,
            inbox=self._inbox,
            link=self.link,
            target=self._target,
            limits=self._gate.limits,
            progress=progress,
        )

    def _identity(self, head: RequestHead) -> dict[str, object]:
        nonces = [value for name, value in head.fields if name == b"tunnelmgr-nonce"]
        match nonces:
            case []:
                return self._told()
            case [nonce] if _NONCE.fullmatch(nonce):
                return self._proof(nonce.decode("ascii"))
        raise MalformedRequestError("a nonce is up to 128 hexadecimal digits")

    def _told(self) -> dict[str, object]:
        caller = self._caller
        return {"agent": caller.agent, "group": caller.group, "controller": caller.controller}

    def _failure(self, failed: GateError, head: RequestHead | None, entry: PendingRecord) -> LocalReply:
        """Turn an error into the answer that tells it; the registry's part of it is over."""
        self.link.abort()
        match failed:
            case MalformedRequestError():
                return refusal(HTTPStatus.BAD_REQUEST, failed.oci_code, str(failed), close=True)
            case AgentStalledError():
                return refusal(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", str(failed), close=True)
            case ReadOnlyError():
                status, code = HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED"
            case RedirectedElsewhereError() | UnusableLocationError():
                status, code = HTTPStatus.BAD_GATEWAY, "UNAVAILABLE"
            case _:
                status, code = HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"
        entry.failure = failed
        close = head is None or head.ends_channel
        return refusal(status, code, str(failed), close=close)

    async def _tell(self, answer: LocalReply, head: RequestHead | None, progress: Progress) -> None:
        progress.status = answer.status
        progress.keep_alive = not answer.close
        try:
            async with asyncio.timeout(self._gate.limits.answer):
                await self._agent.write(answer.encode(without_body=head is not None and head.method == "HEAD"))
        except TimeoutError:
            progress.keep_alive = False
        else:
            progress.unread = answer.close

    async def _drain(self) -> None:
        """Read what the agent still sends, so that its own side does not reset before it has read the answer."""
        self._agent.write_eof()
        left = MAX_DISCARDED
        try:
            async with asyncio.timeout(self._gate.limits.drain):
                while left > 0 and (data := await self._agent.read()):
                    left -= len(data)
        except TimeoutError:
            self._log.debug("agent did not end its refused request")

    def _record(self, entry: PendingRecord, progress: Progress, *, took: float) -> None:
        sent, received = self._recorded
        self._recorded = self._agent.to_agent, self._agent.from_agent
        record = entry.record(
            self._caller,
            status=int(progress.status),
            sent=self._agent.to_agent - sent,
            received=self._agent.from_agent - received,
            took=took,
        )
        self._gate.requests.record(record)
