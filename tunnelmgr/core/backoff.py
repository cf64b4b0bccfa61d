"""When to try again: exponential backoff with full jitter, so that agents lost together do not return together."""

import random
from dataclasses import dataclass
from typing import Final

from tunnelmgr.errors import Pace

MANY: Final = 20
"""Failures in a row after which the cap itself grows: the agent is more likely dead than booting."""
GROWTH: Final = 1.1
"""The factor by which the cap grows with each further failure."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A schedule in seconds: the n-th wait is drawn from 0 to `base * factor ** (n - 1)`, at most `cap`.

    After `MANY` failures the cap grows, up to `longest`.
    """

    base: float
    factor: float
    cap: float
    longest: float

    def ceiling(self, failures: int) -> float:
        """Return the longest wait after this many failures in a row."""
        # The exponents are bounded: a float overflows at about 1,000 failures.
        cap = min(self.longest, self.cap * GROWTH ** min(max(failures - MANY, 0), 64))
        return min(cap, self.base * self.factor ** min(max(failures, 1) - 1, 64))


SCHEDULES = {
    # A booting agent's sshd is expected at any moment, so the cap is low; but hundreds of dead agents must cost little.
    Pace.SOON: Retry(base=0.5, factor=1.6, cap=5.0, longest=30.0),
    Pace.SLOW: Retry(base=2.0, factor=2.0, cap=60.0, longest=60.0),
}


def retry_at(pace: Pace, failures: int, now: float, seed: str) -> float | None:
    """Return the time of the next try, or None if an operator has to decide first.

    The draw depends on `seed` and `failures` alone, so that a test can repeat it.
    """
    if pace is Pace.NEVER:
        return None
    draw = random.Random(f"{seed}/{failures}").random()  # noqa: S311 - spreads load, guards nothing
    return now + draw * SCHEDULES[pace].ceiling(failures)
