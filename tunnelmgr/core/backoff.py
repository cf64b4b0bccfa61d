"""When to try again: exponential, with full jitter, so that agents lost together do not come back together."""

import random
from dataclasses import dataclass

from tunnelmgr.errors import Pace


@dataclass(frozen=True, slots=True)
class Retry:
    """A schedule in seconds: the n-th wait is drawn from 0 to `base * factor ** (n - 1)`, at most `cap`."""

    base: float
    factor: float
    cap: float

    def ceiling(self, failures: int) -> float:
        """Return the longest wait after so many failures in a row."""
        # The exponent is bounded: a float overflows at about 1,000 failures.
        return min(self.cap, self.base * self.factor ** min(max(failures, 1) - 1, 64))


SCHEDULES = {
    # A booting agent's sshd is expected at any moment, so the cap is low.
    Pace.SOON: Retry(base=0.5, factor=1.6, cap=5.0),
    Pace.SLOW: Retry(base=2.0, factor=2.0, cap=60.0),
}


def retry_at(pace: Pace, failures: int, now: float, seed: str) -> float | None:
    """Return the time of the next try, or None where a person has to decide first.

    The draw depends on `seed` and `failures` alone, so that a test can repeat it.
    """
    if pace is Pace.NEVER:
        return None
    draw = random.Random(f"{seed}/{failures}").random()  # noqa: S311 - spreads load, guards nothing
    return now + draw * SCHEDULES[pace].ceiling(failures)
