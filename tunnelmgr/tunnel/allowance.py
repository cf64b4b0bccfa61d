"""How much of the event loop's time an agent's messages may take.

One loop serves all tunnels, and an SSH message of forty bytes costs it as much as one of 32 KiB. So the loop's time is
the currency: a connection pays for what its messages take, and earns by the bytes that its channels carry. What it
takes beyond that is held to `SHARE`, once `BURST` is used up. No agent that pulls or pushes comes near it; one that
floods us with small messages is slowed to a rate at which the other tunnels do not feel it.
"""

SHARE = 0.1
"""Of the loop's time, what a connection may take for messages that carry nothing."""
BURST = 0.1
"""Seconds of the loop's time that may be saved up."""
EARNED = 1 / (16 * 1024 * 1024)
"""Seconds that a byte in a channel earns: a tenth of the pace at which bulk data really goes."""


class Allowance:
    """One connection's account, in seconds of the loop's time."""

    def __init__(self, now: float) -> None:
        self._credit = BURST
        self._at = now

    def spend(self, seconds: float) -> None:
        """Pay for messages that took so long."""
        self._credit -= seconds

    def earn(self, octets: int) -> None:
        """Be credited with bytes that a channel carried."""
        self._credit = min(BURST, self._credit + octets * EARNED)

    def rest(self, now: float) -> float:
        """Return the seconds to wait before the next message, 0 while there is credit."""
        self._credit = min(BURST, self._credit + (now - self._at) * SHARE)
        self._at = now
        return max(0.0, -self._credit / SHARE)
