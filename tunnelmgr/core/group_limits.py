"""What the agents of a group may use together: `[group.limits]`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of a group in one controller; None means unlimited. The rates are in bytes a second."""

    requests_per_second: float | None = None
    pull_rate: float | None = None
    push_rate: float | None = None
    concurrent_pulls: int | None = None


UNLIMITED = GroupLimits()
