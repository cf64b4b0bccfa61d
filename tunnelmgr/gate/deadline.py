"""The deadline of one task's waits, one after another.

Each wait of a session has a deadline, and nearly all end long before it. `asyncio.timeout` makes a timer for each and
cancels it again. Here one timer serves all: a wait only notes until when it may last, and the timer compares when it
fires.
"""

import asyncio
from types import TracebackType
from typing import Self

_NEVER = float("inf")


class Deadline:
    """Bounds one wait at a time: `with deadline.within(seconds)` raises TimeoutError as `asyncio.timeout` does.

    Belongs to one task, which closes it at its end.
    """

    __slots__ = ("_at", "_cancelling", "_expired", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._at = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object]
        self._cancelling = 0
        self._expired = False

    def within(self, seconds: float) -> Self:
        """Return this deadline, for a wait of at most `seconds` from now."""
        self.extend(seconds)
        return self

    def extend(self, seconds: float) -> None:
        """Let the wait last for `seconds` from now."""
        at = self._at = self._loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            self.close()
            self._timer = self._loop.call_at(at, self._on_timer)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (it bounds the waits of a task)
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._at = _NEVER
        if not self._expired:
            return
        # The task was cancelled for another reason too if more cancellations are left than before.
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _on_timer(self) -> None:
        self._timer = None
        if self._at == _NEVER:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._on_timer)
        else:
            self._expired = True
            self._task.cancel()
