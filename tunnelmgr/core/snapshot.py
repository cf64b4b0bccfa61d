"""A source's answer to the question which agents there are."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent, AgentId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source's answer.

    `gone` holds the agents that the source itself calls ended, `outside` those that are there and were taken out of the
    source, and `unlisted` those of `agents` that the listing lacked and that were found by their ids. `failures` says
    what could not be asked; while it is not empty, absence means nothing. `absence_is_proof` is for sources whose list
    is the truth (a file).
    """

    agents: frozenset[Agent]
    gone: frozenset[AgentId] = frozenset()
    failures: tuple[str, ...] = ()
    absence_is_proof: bool = False
    outside: frozenset[AgentId] = frozenset()
    unlisted: frozenset[AgentId] = frozenset()
