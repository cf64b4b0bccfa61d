"""Handles a request after its head is parsed: the group's policy decides, then one of four handlers acts.

The policy of the agent's current group is looked up for every request, so a reload applies to open channels too,
including one that moves the agent to another group.

If the forward's target is a read-only replica, pushes and deletes go to another registry, with all that they need to
know of it: the tags and manifests of the replica may be older.
"""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.oci import WELL_KNOWN_PATH, RegistryAction, Route, classify
from tunnelmgr.core.policy import PULL_THROUGH, WRITES, GroupPolicy, Verdict, decide
from tunnelmgr.core.ports import Channel
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.deadline import Deadline
from tunnelmgr.errors import GateClosedError
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.catalog import CatalogSearch
from tunnelmgr.gate.connected_registry import ConnectedRegistry
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.delete import DeleteHandler
from tunnelmgr.gate.exchange import Exchange, ReadOnlyError
from tunnelmgr.gate.group_limiter import GroupLimiter
from tunnelmgr.gate.head_encoder import encode_plain_request
from tunnelmgr.gate.head_parser import Coding, ParseBuffer, RequestHead, has_form_body
from tunnelmgr.gate.identity import IdentityEndpoint
from tunnelmgr.gate.local_reply import LocalReply, refusal
from tunnelmgr.gate.paced_channel import PacedChannel
from tunnelmgr.gate.push import PushHandler
from tunnelmgr.gate.request_state import RequestState
from tunnelmgr.gate.request_trace import Stage
from tunnelmgr.gate.traffic import MeteredChannel

_PROBE: Final = classify("GET", WELL_KNOWN_PATH)
_READS: Final = frozenset({RegistryAction.BASE, RegistryAction.PULL})
_SHARED: Final = frozenset({Route.BASE, Route.MANIFEST})
"""What all agents of a fleet ask for, with short answers."""


class RequestHandler:
    """Handles the requests of one channel; `caller` is the agent with the group that the last one was decided for."""

    def __init__(  # noqa: PLR0913, PLR0917 (what a session consists of, each once)
        self,
        context: GateContext,
        agent: MeteredChannel,
        inbox: ParseBuffer,
        deadline: Deadline,
        caller: Caller,
        forward: Forward,
    ) -> None:
        self.caller = caller
        self._context = context
        self._agent = agent
        self._inbox = inbox
        self._deadline = deadline
        self._writer = forward.writer
        self._for_reads = self._connect(forward.target)
        self._for_writes = self._for_reads if forward.push_target is None else self._connect(forward.push_target)
        self._identity = IdentityEndpoint(context.proofs, agent, caller.listener)

    def abort(self) -> None:
        """Close the channel's connections to the registry at once."""
        self._for_reads.connection.abort()
        self._for_writes.connection.abort()

    def reply_to_probe(self, raw: bytes, state: RequestState) -> LocalReply | None:
        """Reply to a head that is the controller's probe, None for any other."""
        nonce = self._identity.probe_nonce(raw)
        if nonce is None:
            return None
        state.method, state.request = _PROBE.method, _PROBE
        state.set_verdict(decide(_PROBE, self._current_policy()))  # every group may
        return self._identity.reply_to_probe(nonce, self.caller)

    def take_probe(self, data: bytes) -> bool:
        """Return whether this is a probe that needs no answer."""
        return self._identity.take_probe(data, self.caller)

    async def handle(self, head: RequestHead, state: RequestState) -> LocalReply | None:
        """Decide about a request and carry it out; returns the gate's own reply if there is one.

        Raises as `Exchange` does, and GateClosedError if the request log has an outage.
        """
        policy = self._current_policy()
        state.follow(self._context.requests.trace(self.caller.agent))
        request = state.request = classify(head.method, head.target)
        if head.body.coding is not Coding.NONE and has_form_body(head):
            message = "a registry takes blobs and manifests, not forms: send another Content-Type"
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED", message, close=head.ends_channel)
        verdict = decide(request, policy)
        state.set_verdict(verdict)
        if not verdict.allowed:
            return _refusal_by(verdict, close=head.ends_channel)
        if request.action is RegistryAction.WELL_KNOWN:
            return self._identity.reply(head, self.caller)
        if (why := self._context.requests.outage()) is not None:
            raise GateClosedError(why)
        if self._writer and request.action in WRITES:
            raise ReadOnlyError(head.method, self._for_reads.endpoint, self._writer)
        registry = self._for_writes if request.action in WRITES else self._for_reads
        limiter = self._context.limiters.of(policy.group, policy.limits)
        authorized = AuthorizedRequest(head, request, policy, state, self._exchange(state, registry, limiter))
        if limiter is None:
            return await self._carry_out(authorized, registry)
        state.enter(Stage.LIMIT)
        pulls_blob = request.route is Route.BLOB and head.method == "GET"
        async with limiter.turn(self.caller.agent, pulls_blob=pulls_blob):
            return await self._carry_out(authorized, registry)

    async def _carry_out(self, authorized: AuthorizedRequest, registry: ConnectedRegistry) -> LocalReply | None:
        head, request = authorized.head, authorized.request
        if request.action not in _READS:
            authorized.state.enter(Stage.REGISTRY)
        match request.action:
            case RegistryAction.CATALOG:
                return await self._catalog_search(head, authorized.policy).page(request, close=head.ends_channel)
            case RegistryAction.PUSH:
                return await self._push_handler(registry).handle(authorized)
            case RegistryAction.DELETE:
                with self._context.holdings.deleting(request.repository):
                    return await self._delete_handler(registry).handle(authorized)
        await self._pull(authorized, registry)
        return None

    async def _pull(self, pull: AuthorizedRequest, registry: ConnectedRegistry) -> None:
        """Answer a request that only reads: from the cache, as one of many that ask the same, or on its own."""
        head, request, exchange = pull.head, pull.request, pull.exchange
        cached = self._context.cached_pulls
        if cached is not None and await cached.serve(pull, registry, self.caller.agent):
            return
        pull.state.enter(Stage.REGISTRY)
        if request.route in _SHARED:
            wire = encode_plain_request(head)
            answer = await self._context.shared.answer(head.method, wire, registry.connection.slot)
            if answer is not None:
                await exchange.forward_answer(head, request, answer)
                return
        response = await exchange.forward_request(head, request)
        await exchange.forward_response(head, request, response)

    def _current_policy(self) -> GroupPolicy:
        """Return the policy of the agent's current group, under which the request is then recorded."""
        policy = self._context.policies.policy_of(self.caller.agent, self.caller.forward)
        if policy.group != self.caller.group:
            self.caller = replace(self.caller, group=policy.group)
        return policy

    def _connect(self, endpoint: Endpoint) -> ConnectedRegistry:
        """Return a registry for this channel; its connection opens when it is first needed."""
        slots = self._context.pending_requests.slots_of(self.caller.agent)
        return ConnectedRegistry.at(endpoint, slots, self._context.timeouts.response)

    def _exchange(self, state: RequestState, registry: ConnectedRegistry, limiter: GroupLimiter | None) -> Exchange:
        agent: Channel = self._agent
        if limiter is not None:
            agent = PacedChannel(agent, self.caller.agent, limiter, self._deadline, received=len(self._inbox))
        return Exchange(
            agent=agent,
            inbox=self._inbox,
            connection=registry.connection,
            target=registry.endpoint,
            timeouts=self._context.timeouts,
            deadline=self._deadline,
            state=state,
        )

    def _catalog_search(self, head: RequestHead, policy: GroupPolicy) -> CatalogSearch:
        return CatalogSearch(
            pages=self._for_reads.queries,
            host=head.host,
            policy=policy,
            agent=self._agent,
            turn=self._context.searches.slots_of(self.caller.agent),
        )

    def _push_handler(self, registry: ConnectedRegistry) -> PushHandler:
        context, caller = self._context, self.caller
        buffered = context.buffered_manifests.slots_of(caller.agent)
        return PushHandler(context.uploads, context.tag_locks, buffered, registry.queries, caller, registry.endpoint)

    def _delete_handler(self, registry: ConnectedRegistry) -> DeleteHandler:
        context = self._context
        searches = context.searches.slots_of(self.caller.agent)
        return DeleteHandler(context.tag_locks, searches, registry.queries, registry.endpoint, context.timeouts.search)


def _refusal_by(verdict: Verdict, *, close: bool) -> LocalReply:
    """Return the reply to a request that a rule refuses; no grant would allow a push to a pull-through cache."""
    if verdict.rule == PULL_THROUGH:
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", verdict.reason, close=close)
    return refusal(HTTPStatus.FORBIDDEN, "DENIED", verdict.reason, close=close)
