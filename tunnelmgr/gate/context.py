"""What all channels of a gate share, and the protocols that the daemon implements for it."""

from dataclasses import dataclass, field
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.cached_pulls import CachedPulls
from tunnelmgr.gate.concurrency_limit import ConcurrencyLimit
from tunnelmgr.gate.group_limiter import GroupLimiters
from tunnelmgr.gate.holdings import Holdings
from tunnelmgr.gate.in_flight import RequestInFlight
from tunnelmgr.gate.push import MAX_BUFFERED_MANIFESTS
from tunnelmgr.gate.registry_slot import MAX_PENDING_REQUESTS
from tunnelmgr.gate.request_record import NoRequestLog, RequestLog
from tunnelmgr.gate.shared_requests import SharedRequests
from tunnelmgr.gate.tag_locks import TagLocks
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.uploads import UploadProofs


class PolicySource(Protocol):
    """Knows which group each agent is in; `daemon/active_configuration.py` implements it."""

    def policy_of(self, agent: AgentId, forward: str) -> GroupPolicy:
        """Return the policy of the group that the agent is in now, at a forward; called for every request."""
        ...


class ProofSource(Protocol):
    """Makes the proofs that answer probes; `tunnel/proof.py` implements it."""

    def proof(self, nonce: str, agent: AgentId, listener: str) -> str:
        """Return a proof, which only this controller can make, that `nonce` came in through `listener` on `agent`."""
        ...

    def note_arrival(self, nonce: str, agent: AgentId, listener: str) -> bool:
        """Note that `nonce` came in; returns whether a probe of this process waits for just that, not for an answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GateContext:
    """The policies, the request log, the limits and the state that all channels of a gate share."""

    policies: PolicySource
    proofs: ProofSource
    uploads: UploadProofs
    requests: RequestLog = field(default_factory=NoRequestLog)
    timeouts: Timeouts = field(default_factory=Timeouts)
    tag_locks: TagLocks = field(default_factory=TagLocks)
    pending_requests: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(MAX_PENDING_REQUESTS))
    buffered_manifests: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(MAX_BUFFERED_MANIFESTS))
    searches: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(1))
    shared: SharedRequests = field(default_factory=lambda: SharedRequests(Timeouts().response))
    holdings: Holdings = field(default_factory=Holdings)
    cached_pulls: CachedPulls | None = None
    limiters: GroupLimiters = field(default_factory=GroupLimiters)
    in_flight: set[RequestInFlight] = field(default_factory=set)
