"""How fast a project of Hetzner Cloud may be asked, so that polling takes from others no more than its share."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus

LONGEST_PAUSE = 300.0
BLIND_PAUSE = 60.0
"""Seconds to wait after a 429 that does not say for how long."""
HOUR = 3600.0


@dataclass(slots=True)
class RequestBudget:
    """What is left of the project's requests, of which an hour has 3,600 and other programs want theirs too.

    docs.hetzner.cloud, "Rate Limiting": what was spent comes back evenly, one request a second for a limit of 3,600;
    `RateLimit-Reset` is the time when all of it will be back.
    """

    clock: Callable[[], float] = time.monotonic
    limit: int = 0
    remaining: int = 0
    spent: int = 0  # since `begin`
    _refused: bool = False
    _whole_in: float | None = None
    _heard: float = 0.0

    def begin(self) -> None:
        """Count from here what the poll costs."""
        self.spent = 0

    def record(self, status: int, headers: Mapping[str, str]) -> None:
        """Take note of an answer."""
        limit, remaining = (_number(headers.get(f"RateLimit-{name}")) for name in ("Limit", "Remaining"))
        self._refused = status == HTTPStatus.TOO_MANY_REQUESTS
        if limit and remaining is not None:
            self.limit, self.remaining = limit, remaining
        if limit or self._refused:
            self._whole_in, self._heard = _seconds_to_reset(headers), self.clock()

    def pause(self) -> float:
        """Return for how many seconds more, beyond the interval, the project should be left alone.

        Nothing while at least half of the limit is there. Below that, with `cost` the requests of the last poll and
        `back` the requests that come back each second,

            cost / back x (limit / 2 - remaining) / remaining

        At a quarter of the limit that is cost / back: by the next poll as much has come back as it takes. So polling
        alone never brings the budget below a quarter, and gives way further where others draw on it. After a 429 it
        is the time to the reset. Never longer than to the reset, when all is there again, nor than five minutes: what
        came back until then pays for any poll of fewer than 300 requests.
        """
        return max(0.0, self._heard + self._wanted() - self.clock())

    def _wanted(self) -> float:
        if self._refused:
            return min(LONGEST_PAUSE, BLIND_PAUSE if self._whole_in is None else self._whole_in)
        missing = self.limit / 2 - self.remaining
        if missing <= 0:
            return 0.0
        longest = LONGEST_PAUSE if self._whole_in is None else min(LONGEST_PAUSE, self._whole_in)
        if self.remaining <= 0:
            return longest
        return min(longest, self.spent * HOUR / self.limit * missing / self.remaining)


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,12}", text) else None


def _seconds_to_reset(headers: Mapping[str, str]) -> float | None:
    """Return the time from the answer to the reset, both by Hetzner's clock, None where it does not say."""
    reset = _number(headers.get("RateLimit-Reset"))
    try:
        sent = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return None
    return None if reset is None else max(0.0, reset - sent.timestamp())
