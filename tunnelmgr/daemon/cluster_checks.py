"""What the members of a cluster must agree on, and whether they do."""

import hashlib
import json
from collections.abc import Iterator
from typing import Final

from tunnelmgr.config import Config
from tunnelmgr.core.cluster import DatabaseFacts

MAX_SKEW: Final = 30.0
"""Seconds by which this machine's clock may differ from the database's: seeds and certificates expire by it."""


def disagreements(config: Config, facts: DatabaseFacts) -> Iterator[str]:
    """Yield what is wrong between this configuration and machine, and the living members and the database."""
    own = shared_rules(config)
    others = sorted(name for name, rules in facts.rules.items() if rules and rules != own)
    if others:
        yield (
            f"{', '.join(others)}: other sources, groups, forwards or authorities than in this file; "
            "install the same configuration on all members, and run: tunnelmgr reload"
        )
    if abs(facts.clock_ahead) > MAX_SKEW:
        direction = "behind" if facts.clock_ahead > 0 else "ahead of"
        yield f"this machine's clock is {abs(facts.clock_ahead):.0f} s {direction} the database's; set it, as with NTP"


def shared_rules(config: Config) -> str:
    """Return a digest of what all members of a cluster must agree on: sources, groups, forwards and authorities.

    Where pushes go is left out: a member beside a read-only replica sends them to another registry than one beside the
    writer.
    """
    own = {"forward": {"__all__": {"push_target", "writer"}}}
    parts = config.model_dump(mode="json", include={"source", "group", "forward", "authority"}, exclude=own)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
