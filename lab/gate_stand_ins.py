"""Stand-ins for what the daemon gives the gate: one policy for every agent, and proofs that need no secret."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.request_record import NoRequestLog, RequestLog
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.uploads import UploadProofs

SECRET = b"the secret of every gate in a test"


@dataclass(slots=True)
class OnePolicy:
    """A policy source that gives every agent the same policy."""

    policy: GroupPolicy

    def policy_of(self, _: AgentId) -> GroupPolicy:
        """Return the policy."""
        return self.policy


class ListenerProofs:
    """A proof source whose proofs show the nonce and the listener that it was called with."""

    def proof(self, nonce: str, _: AgentId, listener: str) -> str:
        """Return `<nonce>@<listener>`."""
        return f"{nonce}@{listener}"


def gate_with(
    policy: GroupPolicy,
    *,
    requests: RequestLog | None = None,
    timeouts: Timeouts | None = None,
) -> Gate:
    """Return a gate that applies one policy to every agent."""
    context = GateContext(
        policies=OnePolicy(policy),
        proofs=ListenerProofs(),
        requests=requests or NoRequestLog(),
        timeouts=timeouts or Timeouts(),
        uploads=UploadProofs(SECRET),
    )
    return Gate(context)
