"""Asking an agent's trust sources in order; the first with evidence answers, and nothing falls back further."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import Event, EvidenceAbsent, EvidenceContradicted, EvidenceFound, Rules
from tunnelmgr.core.ports import HostKeySource
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError

PATIENCE = 60.0
"""Seconds that one trust source may take."""

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
            except HostKeyUnknownError as why:
                lacking.append(f"{method}: {why}")
                continue
            except HostKeyMismatchError as other:
                log.error("evidence contradicted", agent=agent.id, method=method, error=str(other))  # noqa: TRY400 - no fault
                report(EvidenceContradicted(agent.id, agent.incarnation, str(other)))
                return
            log.info("evidence found", agent=agent.id, method=method, keys=trust.fingerprints)
            report(EvidenceFound(agent.id, agent.incarnation, trust))
            return
        report(EvidenceAbsent(agent.id, agent.incarnation, "; ".join(lacking) or "no method may be believed"))

    async def _ask(self, method: Method, agent: Agent) -> HostTrust:
        source = self.sources.get(agent.source, {}).get(method)
        if source is None:
            raise HostKeyUnknownError("not available for this source")
        try:
            async with asyncio.timeout(PATIENCE):
                return await source.trust_for(agent)
        except (HostKeyUnknownError, HostKeyMismatchError):
            raise
        except TimeoutError as late:
            raise HostKeyUnknownError(f"no answer within {PATIENCE:g} s") from late
        except Exception as broken:  # a bulkhead: the plug-in's fault must not cost the other agents their tunnels
            log.exception("trust source failed", agent=agent.id, method=method)
            raise HostKeyUnknownError(f"failed: {broken!r}; the log has the trace") from broken
