"""Deadlines that cost no timer for each wait.

Nearly all waits end long before their deadline. `asyncio.timeout` makes a timer for each and cancels it again. Here a
wait only notes until when it may last; one timer stays, and compares when it fires.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_NEVER = float("inf")


class Alarm:
    """Calls `on_late` if it is set and not cleared in time; its owner closes it."""

    __slots__ = ("_at", "_loop", "_on_late", "_timer")

    def __init__(self, on_late: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_late = on_late
        self._at = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call `on_late` after this time, instead of at an earlier or later one that was set before."""
        at = self._at = self._loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            self.close()
            self._at = at
            self._timer = self._loop.call_at(at, self._on_timer)

    def left(self) -> float | None:
        """Return the seconds until it is late, None if it is not set."""
        return None if self._at == _NEVER else self._at - self._loop.time()

    def clear(self) -> None:
        """Do not call it."""
        self._at = _NEVER

    def close(self) -> None:
        """Clear it, and stop the timer."""
        self._at = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._at == _NEVER:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._on_timer)
        else:
            self._at = _NEVER
            self._on_late()


class Deadline:
    """Bounds one wait of a task at a time; `with deadline.within(seconds)` raises as `asyncio.timeout` does.

    Belongs to one task, which closes it at its end.
    """

    __slots__ = ("_alarm", "_cancelling", "_expired", "_task")

    def __init__(self) -> None:
        self._alarm = Alarm(self._expire)
        self._task: asyncio.Task[object]
        self._cancelling = 0
        self._expired = False

    def within(self, seconds: float) -> Self:
        """Return this deadline, for a wait of at most `seconds` from now."""
        self._alarm.set(seconds)
        return self

    def extend(self, seconds: float) -> None:
        """Let the wait last for `seconds` from now."""
        self._alarm.set(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave a part of the wait out of account, if it is bounded at all."""
        left = self._alarm.left()
        self._alarm.clear()
        try:
            yield
        finally:
            if left is not None:
                self._alarm.set(left)

    def close(self) -> None:
        """Stop the timer."""
        self._alarm.close()

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (it bounds the waits of a task)
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.clear()
        if not self._expired:
            return
        # The task was cancelled for another reason too if more cancellations are left than before.
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
