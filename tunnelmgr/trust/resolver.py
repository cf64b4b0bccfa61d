"""Asking the trust methods of a source in order; the first that has evidence decides, and no other is asked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import EvidenceAbsent, EvidenceContradicted, EvidenceFound, KeyExamined
from tunnelmgr.core.ports import EventSink, HostKeySource
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, TunnelError
from tunnelmgr.trust.lookups import HostKeyScanner

METHOD_TIMEOUT = 60.0
"""Seconds that one trust method may take."""

Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resolver:
    """Searches for evidence of one agent at a time; `sources` are the methods that each discovery source can serve."""

    sources: Mapping[str, Mapping[Method, HostKeySource]]
    rules: Rules

    async def seek(self, agent: Agent, at_least: Method | None, events: EventSink) -> None:
        """Report the evidence for an agent, what contradicts it, or what every accepted method lacks.

        Methods weaker than `at_least`, by which the agent was identified before, are not asked.
        """
        lacking = []
        for method in self.rules.trust.get(agent.source, ()):
            if not self.rules.accepts(agent, method):
                continue
            if at_least is not None and not method.reaches(at_least):
                lacking.append(f"{method}: weaker than {at_least}, by which the agent was identified before")
                continue
            try:
                trust = await self._ask(method, agent)
            except HostKeyMismatchError as mismatch:
                log.error("evidence contradicted", agent=agent.id, method=method, error=str(mismatch))  # noqa: TRY400 - not a fault of ours
                events.report(EvidenceContradicted(agent.id, agent.incarnation, str(mismatch)))
                return
            except TunnelError as failed:
                lacking.append(f"{method}: {failed}")
                continue
            log.info("evidence found", agent=agent.id, method=method, keys=trust.fingerprints)
            events.report(EvidenceFound(agent.id, agent.incarnation, trust))
            return
        reason = "; ".join(lacking) or "minimum_trust of the group accepts no method of this source"
        events.report(EvidenceAbsent(agent.id, agent.incarnation, reason))

    async def examine(self, agent: Agent, keys: tuple[str, ...], scanner: HostKeyScanner, events: EventSink) -> None:
        """Report the key that an agent presents if it is asked for one of the types of `keys`."""
        try:
            key = await self._guarded(agent, "dispute", lambda: scanner.host_key(agent, keys))
        except TunnelError as failed:
            events.report(KeyExamined(agent.id, agent.incarnation, "", str(failed)))
        else:
            events.report(KeyExamined(agent.id, agent.incarnation, key))

    async def _ask(self, method: Method, agent: Agent) -> HostTrust:
        source = self.sources.get(agent.source, {}).get(method)
        if source is None:
            raise HostKeyUnknownError("not available for this source")
        return await self._guarded(agent, method, lambda: source.trust_for(agent))

    async def _guarded(self, agent: Agent, method: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the result of `ask`; raises TunnelError if it fails in any way."""
        try:
            async with asyncio.timeout(METHOD_TIMEOUT):
                return await ask()
        except TunnelError:
            raise
        except TimeoutError as late:
            raise HostKeyUnknownError(f"no answer within {METHOD_TIMEOUT:g} s") from late
        except Exception as broken:  # a bulkhead: a fault of a plug-in must not affect other agents
            log.exception("trust method failed", agent=agent.id, method=method)
            raise HostKeyUnknownError(f"failed: {broken!r}; see the traceback in the log") from broken
