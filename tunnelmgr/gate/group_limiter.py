"""Limits of a group, for all its agents and channels together: requests and bytes a second, and concurrent pulls.

What exceeds a limit waits, and the agents of the group take turns. A request that has waited for `PATIENCE` seconds is
refused with 429 and Retry-After (RFC 6585, section 4). A body that has started is only slowed down. If a reload changes
a limit, those who wait for it and the bodies that it slows down follow the new one.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from tunnelmgr.core.group_limits import UNLIMITED, GroupLimits
from tunnelmgr.core.health import LimitHealth
from tunnelmgr.core.rate_limit import TokenBucket
from tunnelmgr.errors import GateError
from tunnelmgr.turns import Turns

PATIENCE: Final = 240.0
"""Seconds that a request waits for its turn. It is long because docker fails at once at 429 and ignores Retry-After;
skopeo tries again."""
RETRY_AFTER: Final = 10
"""Seconds after which a client whose request was refused should try again."""
MIN_DELAY: Final = 0.001
"""Seconds between two looks at who may go: uvloop rounds less than half a millisecond to none, and its clock counts
milliseconds, so that it would look again and again until the next one."""
UNBOUNDED: Final = 2**60
"""A rate, or a number, that lets everybody pass who still waits for a limit that is gone."""


class LimitExceededError(GateError):
    """A request has had no turn in time within a limit of its group."""

    code = "limit-exceeded"

    def __init__(self, group: str, limit: str) -> None:
        super().__init__(
            f"group {group} has reached its limit of {limit}, and no turn came within {PATIENCE:g} s; try again later, "
            f"or have {limit} in [group.limits] raised"
        )


LimitKind = TypeVar("LimitKind", "RateLimit", "ConcurrencyInTurns")


class Limit:
    """The waits for one thing that a group may use only so much of; a subclass serves them."""

    def __init__(self) -> None:
        self.waits = 0
        """Waits since the start that have ended."""
        self.waited_s = 0.0
        """Seconds of these waits in all."""
        self.refused = 0
        """Requests that had no turn in time."""
        self._turns = Turns()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._turns)

    async def _wait(self, agent: Hashable, amount: float, patience: float | None) -> bool:
        """Wait for a turn; returns False if there was none within `patience` seconds."""
        loop = asyncio.get_running_loop()
        wait, began = self._turns.add(agent, amount), loop.time()
        try:
            await asyncio.wait([wait.turn], timeout=patience)
        except asyncio.CancelledError:
            if wait.turn.done():
                self._give_back()
            raise
        finally:
            self._turns.remove(agent, wait)
            self.waits += 1
            self.waited_s += loop.time() - began
        if not wait.turn.done():
            self.refused += 1
            return False
        return True

    def _give_back(self) -> None:
        """Take a turn back whose owner was cancelled at the same moment."""


class RateLimit(Limit):
    """So much per second. Each turn grants all that was asked for, and the next one waits accordingly longer."""

    def __init__(self, rate: float) -> None:
        """Allow `rate` per second, and one second's rate at once after a pause."""
        super().__init__()
        self.rate = rate
        self._bucket = _bucket(rate)
        self._timer: asyncio.TimerHandle | None = None

    def change(self, rate: float) -> None:
        """Allow another rate, also to those who wait."""
        if rate == self.rate:
            return
        self.rate, self._bucket = rate, _bucket(rate)
        if self._timer is not None:
            self._timer.cancel()
        self._serve()

    async def acquire(self, agent: Hashable, amount: float = 1.0, patience: float | None = None) -> bool:
        """Take `amount`; returns False if there was none within `patience` seconds."""
        now = asyncio.get_running_loop().time()
        if not self._turns and not self._bucket.wait(now):
            self._bucket.take(now, amount)
            return True
        self._set_timer()
        return await self._wait(agent, amount, patience)

    def _set_timer(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(MIN_DELAY, self._bucket.wait(loop.time())), self._serve)

    def _serve(self) -> None:
        """Give their turns to those for whom there is something again."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while not self._bucket.wait(now) and (wait := self._turns.next()) is not None:
            self._bucket.take(now, wait.amount)
            wait.turn.set_result(None)
        if self._turns:
            self._set_timer()


class ConcurrencyInTurns(Limit):
    """So many at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._free = count  # negative if more run than a reload has left

    def change(self, count: int) -> None:
        """Allow another number; what runs continues."""
        self._free += count - self._count
        self._count = count
        self._serve()

    async def acquire(self, agent: Hashable, patience: float | None = None) -> bool:
        """Take a place, which the caller has to `release`; returns False if none came within `patience` seconds."""
        if self._free > 0:
            self._free -= 1
            return True
        return await self._wait(agent, 1.0, patience)

    def release(self) -> None:
        """Give a place to the next in turn, or back."""
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free > 0 and (wait := self._turns.next()) is not None:
            self._free -= 1
            wait.turn.set_result(None)

    def _give_back(self) -> None:
        self.release()


class GroupLimiter:
    """The limits of one group; those that are None do not exist."""

    def __init__(self, group: str, limits: GroupLimits) -> None:
        self.to_agents: RateLimit | None = None
        self.from_agents: RateLimit | None = None
        self._group = group
        self._requests: RateLimit | None = None
        self._pulls: ConcurrencyInTurns | None = None
        self.follow(limits)

    def follow(self, limits: GroupLimits) -> None:
        """Apply other limits, also to those who wait and to bodies that have started."""
        self.limits = limits
        self.to_agents = _followed(self.to_agents, RateLimit, limits.pull_rate)
        self.from_agents = _followed(self.from_agents, RateLimit, limits.push_rate)
        self._requests = _followed(self._requests, RateLimit, limits.requests_per_second)
        self._pulls = _followed(self._pulls, ConcurrencyInTurns, limits.concurrent_pulls)

    @asynccontextmanager
    async def turn(self, agent: Hashable, *, pulls_blob: bool) -> AsyncIterator[None]:
        """Wait until a request may start, and count the pull of a blob until it ends; raises LimitExceededError."""
        if self._requests is not None and not await self._requests.acquire(agent, patience=PATIENCE):
            raise LimitExceededError(self._group, "requests_per_second")
        pulls = self._pulls
        if pulls is None or not pulls_blob:
            yield
            return
        if not await pulls.acquire(agent, patience=PATIENCE):
            raise LimitExceededError(self._group, "concurrent_pulls")
        try:
            yield
        finally:
            pulls.release()

    def health(self) -> Iterator[LimitHealth]:
        """Return what each limit has done."""
        limits = {
            "requests_per_second": self._requests,
            "pull_rate": self.to_agents,
            "push_rate": self.from_agents,
            "concurrent_pulls": self._pulls,
        }
        for name, limit in limits.items():
            if limit is not None:
                yield LimitHealth(self._group, name, limit.waiting, limit.waits, limit.waited_s, limit.refused)


class GroupLimiters:
    """The limiter of each group that has limits, made when it is first needed; it follows when its limits change."""

    def __init__(self) -> None:
        self._by_group: dict[str, GroupLimiter] = {}

    def of(self, group: str, limits: GroupLimits) -> GroupLimiter | None:
        """Return the group's limiter, None if it has no limits."""
        limiter = self._by_group.get(group)
        if limiter is not None and limiter.limits != limits:
            limiter.follow(limits)
        if limits is UNLIMITED:
            if limiter is not None:
                del self._by_group[group]
            return None
        if limiter is None:
            limiter = self._by_group[group] = GroupLimiter(group, limits)
        return limiter

    def health(self) -> list[LimitHealth]:
        """Return what all limits have done, for the metrics and `status`."""
        return [each for limiter in self._by_group.values() for each in limiter.health()]


def _followed(limit: LimitKind | None, kind: type[LimitKind], amount: Any) -> LimitKind | None:  # noqa: ANN401 - as the kind takes it
    """Return the limit for an amount, the same one as before if there was one; None if there is no longer one."""
    if limit is None:
        return None if amount is None else kind(amount)
    limit.change(UNBOUNDED if amount is None else amount)
    return None if amount is None else limit


def _bucket(rate: float) -> TokenBucket:
    return TokenBucket(rate, max(0.0, rate - 1))  # beside the one that is granted if nothing is owed
