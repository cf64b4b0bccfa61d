"""One request that its group's rules allow, with all that is needed to forward it or to refuse it after all."""

from dataclasses import dataclass
from http import HTTPStatus

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import GroupPolicy, Verdict
from tunnelmgr.gate.exchange import Exchange
from tunnelmgr.gate.head_parser import RequestHead
from tunnelmgr.gate.local_reply import LocalReply, refusal
from tunnelmgr.gate.request_state import RequestState


@dataclass(frozen=True, slots=True)
class AuthorizedRequest:
    """A request that its group's rules allow; the tag or the manifest that it names may still be protected."""

    head: RequestHead
    request: RegistryRequest
    policy: GroupPolicy
    state: RequestState
    exchange: Exchange

    def refuse(
        self,
        verdict: Verdict,
        status: HTTPStatus = HTTPStatus.FORBIDDEN,
        code: str = "DENIED",
        *,
        body_read: bool = False,
    ) -> LocalReply:
        """Record a refusal and return the reply; the channel stays open if the request's body has been read."""
        self.state.set_verdict(verdict)
        close = not self.head.keep_alive if body_read else self.head.ends_channel
        return refusal(status, code, verdict.reason, close=close)
