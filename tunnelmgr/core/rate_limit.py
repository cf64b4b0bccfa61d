"""A token bucket, in the form of the generic cell rate algorithm (ITU-T I.371): one number of state."""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Allows `burst` tokens at once, then `rate` per second. Times are in seconds, all by the same clock."""

    rate: float
    burst: float
    _full_at: float = float("-inf")  # when all tokens are back

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take tokens, even if too few are left; the caller then has to `wait`."""
        self._full_at = max(self._full_at, now) + amount / self.rate

    def wait(self, now: float) -> float:
        """Return the seconds until the tokens taken so far are refilled, 0 if they are."""
        return max(0.0, self._full_at - now - self.burst / self.rate)

    def idle(self, now: float) -> bool:
        """Whether the bucket is full, like a new one."""
        return self._full_at <= now
