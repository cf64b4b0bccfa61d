"""The policies of all groups at all forwards, compiled once for each configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunnelmgr.core.policy import GroupPolicy, Verdict


@dataclass(frozen=True, slots=True)
class Explained:
    """A verdict and the name of the forward at which it holds."""

    forward: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of each group at each forward, by the names of both."""

    compiled: Mapping[tuple[str, str], GroupPolicy] = field(default_factory=dict)

    def of(self, group: str, forward: str) -> GroupPolicy:
        """Return a group's policy at a forward; one that allows nothing if the configuration lacks either."""
        return self.compiled.get((group, forward)) or GroupPolicy.build(group, pull=())

    @property
    def groups(self) -> frozenset[str]:
        """The groups that the configuration has."""
        return frozenset(group for group, _ in self.compiled)
