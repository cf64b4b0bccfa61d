"""Fair waits for something scarce: those who wait take turns, and the waits of one are served in order of arrival."""

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait for `amount` of something; `turn` is set when it has it."""

    amount: float
    turn: asyncio.Future[None]


class Turns:
    """The waits of many, such as agents. One that waits for much delays the others by one turn each time."""

    def __init__(self) -> None:
        self._by_waiter: dict[Hashable, deque[Wait]] = {}  # the one whose turn is next comes first
        self._count = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._count

    def of(self, waiter: Hashable) -> int:
        """Return how many waits one has."""
        return len(self._by_waiter.get(waiter, ()))

    def add(self, waiter: Hashable, amount: float) -> Wait:
        """Add a wait behind the others of the same."""
        wait = Wait(amount, asyncio.get_running_loop().create_future())
        self._by_waiter.setdefault(waiter, deque()).append(wait)
        self._count += 1
        return wait

    def remove(self, waiter: Hashable, wait: Wait) -> None:
        """Remove a wait that was given up, if it has not had its turn."""
        waits = self._by_waiter.get(waiter)
        if waits is None or wait not in waits:
            return
        waits.remove(wait)
        self._count -= 1
        if not waits:
            del self._by_waiter[waiter]

    def next(self) -> Wait | None:
        """Take the wait whose turn it is, None if nobody waits."""
        waiter = next(iter(self._by_waiter), None)
        if waiter is None:
            return None
        waits = self._by_waiter.pop(waiter)
        wait = waits.popleft()
        self._count -= 1
        if waits:
            self._by_waiter[waiter] = waits  # behind the others
        return wait
