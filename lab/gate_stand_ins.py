"""Stand-ins for what the daemon gives the gate: one policy for every agent, and proofs that need no secret."""

from dataclasses import dataclass

from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.cached_pulls import CachedPulls
from tunnelmgr.gate.context import GateContext, PolicySource
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.holdings import Holdings
from tunnelmgr.gate.request_record import NoRequestLog, RequestLog
from tunnelmgr.gate.shared_requests import SharedRequests
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.uploads import UploadProofs

SECRET = b"the secret of every gate in a test"


@dataclass(slots=True)
class OnePolicy:
    """A policy source that gives every agent the same policy."""

    policy: GroupPolicy

    def policy_of(self, _: AgentId, __: str) -> GroupPolicy:
        """Return the policy."""
        return self.policy


class ListenerProofs:
    """A proof source whose proofs show the nonce and the listener that it was called with."""

    def proof(self, nonce: str, _: AgentId, listener: str) -> str:
        """Return `<nonce>@<listener>`."""
        return f"{nonce}@{listener}"

    def note_arrival(self, _: str, __: AgentId, ___: str) -> bool:
        """Return False: every probe gets its answer."""
        return False


def gate_with(
    policy: GroupPolicy,
    *,
    requests: RequestLog | None = None,
    timeouts: Timeouts | None = None,
    blobs: BlobCache | None = None,
    policies: PolicySource | None = None,
) -> Gate:
    """Return a gate that applies one policy to every agent unless `policies` is given, with a cache if `blobs` is."""
    timeouts = timeouts or Timeouts()
    shared, holdings = SharedRequests(timeouts.response), Holdings()
    context = GateContext(
        policies=policies or OnePolicy(policy),
        proofs=ListenerProofs(),
        requests=requests or NoRequestLog(),
        timeouts=timeouts,
        uploads=UploadProofs(SECRET),
        shared=shared,
        holdings=holdings,
        cached_pulls=CachedPulls(shared, holdings, blobs) if blobs is not None else None,
    )
    return Gate(context)
