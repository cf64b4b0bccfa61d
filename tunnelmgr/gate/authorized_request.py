"""One request that its grant allows, with all that is needed to carry it out or to refuse it after all."""

from dataclasses import dataclass
from http import HTTPStatus

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import GroupPolicy, Verdict
from tunnelmgr.gate.exchange import Exchange
from tunnelmgr.gate.head_parser import RequestHead
from tunnelmgr.gate.local_reply import LocalReply, refusal
from tunnelmgr.gate.request_record import PendingRecord


@dataclass(frozen=True, slots=True)
class AuthorizedRequest:
    """A request that is not refused by its group's grants; what it names may still be protected."""

    head: RequestHead
    request: RegistryRequest
    policy: GroupPolicy
    entry: PendingRecord
    exchange: Exchange

    def refuse(
        self,
        verdict: Verdict,
        status: HTTPStatus = HTTPStatus.FORBIDDEN,
        code: str = "DENIED",
        *,
        body_read: bool = False,
    ) -> LocalReply:
        """Record a refusal and return it; the channel can go on if the request's body has been read."""
        self.entry.judge(verdict)
        close = not self.head.keep_alive if body_read else self.head.ends_channel
        return refusal(status, code, verdict.reason, close=close)
