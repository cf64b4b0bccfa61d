"""`seeded`: we made the host key, and the launch put it into the machine by user-data; its label names the seed."""

from collections.abc import Callable
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError

NAMES = ("tunnelmgr:seed", "tunnelmgr-seed")
"""The tag's name on EC2, and the label's on Hetzner, where a name has no colon."""


@dataclass(frozen=True, slots=True)
class SeededKeys:
    """Looks seeds up by id in what the controller remembers."""

    lookup: Callable[[str], Seed | None]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the seed's key, if the seed is this incarnation's or nobody's yet."""
        id_ = next((value for name, value in agent.labels if name in NAMES), None)
        if id_ is None:
            raise HostKeyUnknownError(f"it has no label {' or '.join(NAMES)}")
        seed = self.lookup(id_)
        if seed is None:
            raise HostKeyUnknownError(f"seed {sanitize(id_)} is not known here, or has expired")
        if not seed.serves(agent):
            raise HostKeyUnknownError(f"seed {id_} was used already, by {seed.holder}")
        return HostTrust(Method.SEEDED, (seed.key,), f"seed {id_}")
