"""Asking an agent's trust sources in order; the first with evidence answers, and nothing falls back further."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import Event, EvidenceAbsent, EvidenceContradicted, EvidenceFound, KeyExamined
from tunnelmgr.core.ports import HostKeySource
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, TunnelError

PATIENCE = 60.0
"""Seconds that one trust source may take."""

Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resolver:
    """Knows the trust sources of each discovery source, by method."""

    sources: Mapping[str, Mapping[Method, HostKeySource]]
    rules: Rules

    async def seek(self, agent: Agent, at_least: Method | None, report: Callable[[Event], None]) -> None:
        """Report the evidence for an agent, what contradicts it, or what every method that may be believed lacks.

        Methods weaker than `at_least`, by which the agent was proved before, are not asked.
        """
        lacking = []
        for method in self.rules.trust.get(agent.source, ()):
            if not self.rules.accepts(agent, method):
                continue
            if at_least is not None and not method.reaches(at_least):
                lacking.append(f"{method}: is weaker than {at_least}, by which it was proved before")
                continue
            try:
                trust = await self._ask(method, agent)
            except HostKeyMismatchError as other:
                log.error("evidence contradicted", agent=agent.id, method=method, error=str(other))  # noqa: TRY400 - no fault
                report(EvidenceContradicted(agent.id, agent.incarnation, str(other)))
                return
            except TunnelError as why:
                lacking.append(f"{method}: {why}")
                continue
            log.info("evidence found", agent=agent.id, method=method, keys=trust.fingerprints)
            report(EvidenceFound(agent.id, agent.incarnation, trust))
            return
        report(EvidenceAbsent(agent.id, agent.incarnation, "; ".join(lacking) or "no method may be believed"))

    async def examine(
        self,
        agent: Agent,
        keys: tuple[str, ...],
        show: Callable[[Agent, tuple[str, ...]], Awaitable[str]],
        report: Callable[[Event], None],
    ) -> None:
        """Report what an agent shows by `show` when it is asked for a key of the types of `keys`."""
        try:
            key = await self._guarded(agent, "dispute", lambda: show(agent, keys))
        except TunnelError as failed:
            report(KeyExamined(agent.id, agent.incarnation, "", str(failed)))
        else:
            report(KeyExamined(agent.id, agent.incarnation, key))

    async def _ask(self, method: Method, agent: Agent) -> HostTrust:
        source = self.sources.get(agent.source, {}).get(method)
        if source is None:
            raise HostKeyUnknownError("not available for this source")
        return await self._guarded(agent, method, lambda: source.trust_for(agent))

    async def _guarded(self, agent: Agent, method: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what `ask` gives; raises TunnelError where it fails in any way."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await ask()
        except TunnelError:
            raise
        except TimeoutError as late:
            raise HostKeyUnknownError(f"no answer within {PATIENCE:g} s") from late
        except Exception as broken:  # a bulkhead: the plug-in's fault must not cost the other agents their tunnels
            log.exception("trust source failed", agent=agent.id, method=method)
            raise HostKeyUnknownError(f"failed: {broken!r}; the log has the trace") from broken
