"""`seeded`: the controller made the host key, user-data put it into the machine, and a label names the seed."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.lookups import SeedLookup

SEED_LABELS = ("tunnelmgr:seed", "tunnelmgr-seed")
"""The tag's name on EC2, and the label's on Hetzner, where a name has no colon."""


@dataclass(frozen=True, slots=True)
class SeededKeys:
    """Finds seeds by id among those that the controller has stored."""

    seeds: SeedLookup

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the seed's key, if the seed is unused or was used by this incarnation."""
        id_ = next((value for name, value in agent.labels if name in SEED_LABELS), None)
        if id_ is None:
            raise HostKeyUnknownError(f"it has no label {' or '.join(SEED_LABELS)}")
        seed = self.seeds.seed(id_)
        if seed is None:
            raise HostKeyUnknownError(
                f"seed {sanitize(id_)} is unknown here or has expired; `tunnelmgr provision` makes a new one"
            )
        if not seed.serves(agent):
            raise HostKeyUnknownError(f"seed {id_} was used by {seed.holder} already; a seed is for one machine")
        return HostTrust(Method.SEEDED, (seed.key,), f"seed {id_}")
