"""The request budget of a project of Hetzner Cloud, of which polling leaves enough to other programs."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus

LONGEST_PAUSE = 300.0
BLIND_PAUSE = 60.0
"""Seconds to wait after a 429 that does not state the time of the reset."""
HOUR = 3600.0


@dataclass(slots=True)
class RequestBudget:
    """The remaining requests of a project, usually of 3,600 in an hour, which other programs use too.

    docs.hetzner.cloud, "Rate Limiting": the budget is refilled evenly, by one request in a second for a limit of 3,600;
    `RateLimit-Reset` is the time when it will be full.
    """

    clock: Callable[[], float] = time.monotonic
    limit: int = 0
    remaining: int = 0
    spent: int = 0  # since `begin`
    _refused: bool = False
    _full_in: float | None = None
    _recorded_at: float = 0.0

    def begin(self) -> None:
        """Begin to count the requests of a poll."""
        self.spent = 0

    def record(self, status: int, headers: Mapping[str, str]) -> None:
        """Record the status and the headers of an answer."""
        limit, remaining = (_number(headers.get(f"RateLimit-{name}")) for name in ("Limit", "Remaining"))
        self._refused = status == HTTPStatus.TOO_MANY_REQUESTS
        if limit and remaining is not None:
            self.limit, self.remaining = limit, remaining
        if limit or self._refused:
            self._full_in, self._recorded_at = _seconds_to_reset(headers), self.clock()

    def pause(self) -> float:
        """Return by how many seconds, beyond the interval, to delay the next poll.

        0 while at least half of the limit remains. Below that, with `cost` the requests of the last poll and `refill`
        the requests that are added each second,

            cost / refill x (limit / 2 - remaining) / remaining

        At a quarter of the limit that is cost / refill: by the next poll, as many requests are added as it takes. So
        polling alone never brings the budget below a quarter, and slows down further if others use it. After a 429, it
        is the time to the reset. It is never longer than to the reset, when the budget is full, nor than five minutes,
        in which enough requests are added for any poll of fewer than 300.
        """
        return max(0.0, self._recorded_at + self._wanted() - self.clock())

    def _wanted(self) -> float:
        if self._refused:
            return min(LONGEST_PAUSE, BLIND_PAUSE if self._full_in is None else self._full_in)
        missing = self.limit / 2 - self.remaining
        if missing <= 0:
            return 0.0
        longest = LONGEST_PAUSE if self._full_in is None else min(LONGEST_PAUSE, self._full_in)
        if self.remaining <= 0:
            return longest
        return min(longest, self.spent * HOUR / self.limit * missing / self.remaining)


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,12}", text) else None


def _seconds_to_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds from the answer to the reset, both by Hetzner's clock, None if they are not stated."""
    reset = _number(headers.get("RateLimit-Reset"))
    try:
        sent = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return None
    return None if reset is None else max(0.0, reset - sent.timestamp())
