"""What writes to a repository, where more than its grant decides.

- An upload goes on only for the agent whose POST began it (see `uploads`).
- A protected tag is written once; whoever else wants to write it meanwhile is refused as if it existed.
- A mount that its group may not read becomes an ordinary upload (OCI distribution spec, end-11).
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy, Verdict, may_mount, protecting_rule
from tunnelmgr.core.registry import RegistryRequest, Route, classify, without_mount
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import MalformedRequestError
from tunnelmgr.gate.answers import Answer, refusal
from tunnelmgr.gate.claims import Claims
from tunnelmgr.gate.entry import Entry
from tunnelmgr.gate.exchange import Exchange
from tunnelmgr.gate.framing import RequestHead, ResponseHead
from tunnelmgr.gate.headers import location_target
from tunnelmgr.gate.uploads import Upload, Uploads

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_DONE: Final = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})
_GOES_ON: Final = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
_NOT_BEGUN: Final = Verdict(
    allowed=False, rule="upload", reason="tunnelmgr: this agent has no such upload open: begin it again"
)


@dataclass(frozen=True, slots=True)
class Push:
    """One request that its grant allows."""

    head: RequestHead
    request: RegistryRequest
    policy: GroupPolicy
    entry: Entry
    exchange: Exchange

    def refuse(self, verdict: Verdict, status: HTTPStatus, code: str) -> Answer:
        """Take note of a refusal and return it."""
        self.entry.judge(verdict)
        return refusal(status, code, verdict.reason, close=self.head.ends_channel)


@dataclass(frozen=True, slots=True)
class Pushing:
    """One agent's pushes to one registry."""

    uploads: Uploads
    writing: Claims
    agent: AgentId
    target: Endpoint

    async def carry(self, push: Push) -> Answer | None:
        """Carry a push out, or return why not."""
        request = push.request
        if request.route is Route.UPLOAD and not self.uploads.belongs(self._upload(request), self.agent):
            return push.refuse(_NOT_BEGUN, HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN")
        if rule := protecting_rule(request, push.policy):
            return await self._write_once(push, rule)
        if not may_mount(request, push.policy):
            request = without_mount(request)
        answer = await push.exchange.ask(push.head, request)
        self._note_upload(push.head, request, answer)
        await push.exchange.pass_back(push.head, answer)
        return None

    async def _write_once(self, push: Push, rule: str) -> Answer | None:
        request, exchange = push.request, push.exchange
        with self.writing.claim((self.target, request.repository, request.reference)) as alone:
            if not alone or await exchange.tag_exists(push.head, request):
                return push.refuse(_tag_is_taken(request, rule), HTTPStatus.FORBIDDEN, "DENIED")
            await exchange.pass_back(push.head, await exchange.ask(push.head, request))
        return None

    def _note_upload(self, head: RequestHead, request: RegistryRequest, answer: ResponseHead) -> None:
        """Know where an upload goes on before the agent does: it may use the location on another channel at once."""
        if request.route is Route.UPLOAD and request.method in {"PUT", "DELETE"} and answer.status in _DONE:
            self.uploads.forget(self.agent, self._upload(request))
        elif answer.status in _GOES_ON and (target := location_target(answer, head.host, self.target)):
            try:
                place = classify("PATCH", target)
            except MalformedRequestError:
                log.warning("upload location not understood", registry=str(self.target), repository=request.repository)
                return
            if place.route is Route.UPLOAD and place.repository == request.repository:
                self.uploads.keep(self.agent, self._upload(place))

    def _upload(self, request: RegistryRequest) -> Upload:
        return Upload(self.target, request.repository, request.reference)


def _tag_is_taken(request: RegistryRequest, rule: str) -> Verdict:
    told = f"tunnelmgr: {request.repository}:{request.reference} exists and may not be overwritten ({rule})"
    return Verdict(allowed=False, rule=rule, reason=told)
