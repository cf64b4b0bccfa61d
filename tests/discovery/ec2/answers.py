"""Short forms of what EC2 gets and answers."""

from tunnelmgr.core.agent import Agent

DENIED = ("UnauthorizedOperation", 403)
ROLE = "arn:aws:iam::123456789012:role/tunnelmgr"


def ids(agents: frozenset[Agent]) -> set[str]:
    """Return the ids of the instances."""
    return {agent.incarnation for agent in agents}
