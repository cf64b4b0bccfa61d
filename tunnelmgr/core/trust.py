"""What it takes to believe that a machine is the agent: host keys to expect, and how good the word for them is."""

from dataclasses import dataclass, field
from enum import StrEnum

from tunnelmgr.core.host_key import fingerprint


class Method(StrEnum):
    """How evidence was had, strongest first."""

    AUTHORITY = "authority"
    SEEDED = "seeded"
    PINNED = "pinned"
    CONSOLE = "console"
    LABEL = "label"
    TOFU = "tofu"

    def reaches(self, minimum: "Method") -> bool:
        """Tell whether this method is at least as strong as `minimum`."""
        return self.strength >= minimum.strength

    @property
    def strength(self) -> int:
        """How strong the method is, against others; greater is stronger."""
        return -_ORDER[self]


_ORDER = {method: rank for rank, method in enumerate(Method)}

REMEMBERED = frozenset({Method.SEEDED, Method.CONSOLE, Method.TOFU})
"""Evidence that can be had once only, so it is kept as a pin; the rest is asked for again at every start."""


PER_LIFE = frozenset({Method.AUTHORITY, Method.LABEL})
"""Evidence that the agent itself shows and that may run out, so that each life of a tunnel asks for it anew."""


@dataclass(frozen=True, slots=True)
class HostTrust:
    """Evidence for one incarnation: its public host keys as `type base64`, without comment.

    `detail` says for people where the evidence comes from; two pieces of evidence that differ only there are equal.
    """

    method: Method
    keys: tuple[str, ...]
    detail: str = field(default="", compare=False)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The keys' fingerprints, as `ssh-keygen -l` prints them."""
        return tuple(fingerprint(key) for key in self.keys)
