"""What proves that a machine is the agent: the host keys to expect, and how strong the evidence for them is."""

from dataclasses import dataclass, field
from enum import StrEnum

from tunnelmgr.core.host_key import fingerprint


class Method(StrEnum):
    """How evidence was obtained, strongest first."""

    AUTHORITY = "authority"
    SEEDED = "seeded"
    PINNED = "pinned"
    CONSOLE = "console"
    LABEL = "label"
    TOFU = "tofu"

    def reaches(self, minimum: "Method") -> bool:
        """Return whether this method is at least as strong as `minimum`."""
        return self.strength >= minimum.strength

    @property
    def strength(self) -> int:
        """The method's strength relative to others; greater is stronger."""
        return -_ORDER[self]


_ORDER = {method: rank for rank, method in enumerate(Method)}

REMEMBERED = frozenset({Method.SEEDED, Method.CONSOLE, Method.TOFU})
"""Methods whose evidence can be obtained only once, so that it is kept as a pin; others are asked at every start."""


PER_LIFE = frozenset({Method.AUTHORITY, Method.LABEL})
"""Methods whose evidence the agent itself shows and that may expire, so that it is requested before each dial."""


@dataclass(frozen=True, slots=True)
class HostTrust:
    """Evidence for one incarnation: its public host keys as `type base64`, without comment.

    `detail` says in words where the evidence comes from; two pieces of evidence that differ only there are equal.
    """

    method: Method
    keys: tuple[str, ...]
    detail: str = field(default="", compare=False)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The keys' fingerprints, as `ssh-keygen -l` prints them."""
        return tuple(fingerprint(key) for key in self.keys)
