"""A source's answer: which agents exist."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent, AgentId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source's answer.

    `gone` holds the agents that the source reports as ended, `outside` those that exist but no longer match its
    filters, and `unlisted` those of `agents` that the listing lacked and a request by id found. `failures` says what
    could not be requested; while it is not empty, absence means nothing. `absence_is_proof` is set by sources whose
    list is authoritative (a file).
    """

    agents: frozenset[Agent]
    gone: frozenset[AgentId] = frozenset()
    failures: tuple[str, ...] = ()
    absence_is_proof: bool = False
    outside: frozenset[AgentId] = frozenset()
    unlisted: frozenset[AgentId] = frozenset()
