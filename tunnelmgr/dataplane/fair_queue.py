"""A fair queue for the event loop's time: one loop serves every agent, and each gets its share.

Theory of operation
-------------------
All work that an agent causes runs in *steps*: reading a piece of its SSH connection, one step of a task that serves one
of its channels, one batch of bulk data. Every step belongs to the agent's `Share`. A step runs at once while this
iteration of the loop has time left and no share with a better claim waits; otherwise it waits in the queue.

- Once steps have used `SLICE` seconds, the next one waits until the loop has polled its sockets and timers; then a new
  slice begins. A step is short by itself, or calls `Share.checkpoint` (in a task) or `Share.is_out_of_time` often
  enough to be short.
- Sparse shares go first, as in FQ-CoDel (RFC 8290, section 4.2): an agent with occasional requests is served before
  those that always have something waiting. A share is sparse while it has credit; steps use it up, and it grows again,
  slowly and up to `QUANTUM`, only while no step of the share waits. A sparse share's step runs at once even if the
  slice is used up, unless steps have used `HARD_LIMIT`. Among sparse shares the one
  with the most credit goes first: it has used least in the last moments.
- Among the others the claim is virtual time, as in Linux's Completely Fair Scheduler
  (Documentation/scheduler/sched-design-CFS.rst): a share's virtual time grows by the CPU time that its steps use beyond
  its credit, and the share with the least goes first. Idle time is not saved up, and what was used out of credit does
  not count: otherwise an agent with small requests for hours would wait for hours once newcomers flood.
- So a small request waits for the end of one slice, no matter how many agents flood, and a sole agent may have all of
  the loop's time.
- Within a share, steps run in order of arrival.
- Steps are measured in the thread's CPU time (`time.thread_time`): an agent does not pay for other processes on a busy
  machine.

Two further rules use the same measurements: `NoOpBudget` caps the CPU time of messages that carry no data, even if no
other agent needs the loop, and `scheduled` makes each step of a coroutine a step of a share.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from time import monotonic, thread_time
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

Result = TypeVar("Result")

SLICE: Final = 0.0005
"""Seconds of CPU time that the agents' steps may use before the loop polls its sockets and timers."""
HARD_LIMIT: Final = 0.002
"""Seconds of CPU time after which not even a sparse share's step runs before the loop has polled."""
QUANTUM: Final = 0.005
"""Seconds of CPU time for which a share that was idle goes before those that have a backlog."""
REFILL: Final = 0.1
"""Seconds of credit regained per idle second: a share that uses less than a tenth of the loop's time is sparse."""
NO_OP_SHARE: Final = 0.1
"""The fraction of the loop's time that one agent may use for messages without data."""
NO_OP_BURST: Final = 0.1
"""Seconds of that time that can be saved up."""
EARNED_PER_BYTE: Final = 1 / (16 * 1024 * 1024)
"""Seconds of CPU time that a byte of data earns: ten times its own cost."""
RECENT_SECONDS: Final = 0.25
"""Time for which a connection whose budget was exhausted still counts as throttled."""


class FairQueue:
    """Gives the loop's time to shares: the sparse ones first, then the one with the least virtual time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[bool, float, int, Share]] = []  # a heap: has a backlog, virtual time, arrival
        self._count = 0  # orders shares with equal claims by arrival
        self._floor = 0.0  # virtual time of the last share with a backlog that ran: idle shares continue from there
        self._used = 0.0  # CPU seconds that steps have used since a slice began
        self._running: Share | None = None
        self._began = 0.0  # thread time at which its step began
        self._deferred: list[Callable[[], object]] = []  # what follows the running step
        self._scheduled = False  # whether `_iterate` runs in the next iteration

    def run(self, share: "Share", step: Callable[[], object]) -> bool:
        """Run a step now, or in a later iteration; return whether it ran now."""
        if self.may_run(share):
            self.execute(share, step)
            return True
        self.enqueue(share, step)
        return False

    def enqueue(self, share: "Share", step: Callable[[], object]) -> None:
        """Run a step in its turn, in a later iteration."""
        share.steps.append(step)
        self._push(share)
        self._schedule()

    def is_out_of_time(self) -> bool:
        """Return whether the running step should end: it has used a slice, or this iteration's slice is used up."""
        share = self._running
        if share is None:
            return self._used >= SLICE
        own = thread_time() - self._began
        return own >= SLICE or (self._used + own >= SLICE and share.credit <= own)

    def may_run(self, share: "Share") -> bool:
        """Return whether a step may run now, before those that wait."""
        if share.steps:
            return False
        share.rest(monotonic(), self._floor)
        used = self._used if self._running is None else self._used + thread_time() - self._began
        if used >= (HARD_LIMIT if share.sparse else SLICE):
            return False
        return not self._waiting or share.claim < self._waiting[0][:2]

    def execute(self, share: "Share", step: Callable[[], Result]) -> Result:
        """Run a step and charge its share."""
        if self._running is not None:  # a step within a step is part of it
            return step()
        if not share.sparse:
            self._floor = max(self._floor, share.virtual)
        self._running = share
        self._began = began = thread_time()
        try:
            return step()
        finally:
            while self._deferred:
                self._deferred.pop()()
            self._running = None
            used = thread_time() - began
            self._used += used
            share.charge(used)
            if self._used >= SLICE:
                self._schedule()

    def defer(self, action: Callable[[], object]) -> bool:
        """Run an action at the end of the running step; return False, and do nothing, if no step is running."""
        if self._running is None:
            return False
        self._deferred.append(action)
        return True

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._iterate)

    def _iterate(self) -> None:
        """Begin a slice, and run waiting steps in it."""
        self._used = 0.0
        self._scheduled = False
        if self._waiting:
            self._schedule()  # first: a step that raises must not stop the queue
        while self._waiting and self._used < SLICE:
            share = heappop(self._waiting)[3]
            share.queued = False
            try:
                self.execute(share, share.steps.popleft())
            finally:
                if share.steps:
                    self._push(share)
                else:
                    share.idle_since = monotonic()

    def _push(self, share: "Share") -> None:
        if share.queued:
            return
        share.queued = True
        if len(share.steps) == 1:
            share.rest(monotonic(), self._floor)
        self._count += 1
        heappush(self._waiting, (*share.claim, self._count, share))


class Share:
    """One agent's share of the loop's time; one per connection."""

    __slots__ = ("credit", "idle_since", "queue", "queued", "steps", "virtual")

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.virtual = 0.0
        """Seconds of CPU time used beyond the credit, comparable with other shares' (see the module docstring)."""
        self.credit = QUANTUM
        """Seconds of CPU time for which the share is still sparse; not positive once it has a backlog."""
        self.idle_since = monotonic()
        """When no step of it waited last, or when its credit was last updated."""
        self.steps: deque[Callable[[], object]] = deque()
        """Waiting steps, in order of arrival."""
        self.queued = False
        """Whether the share is in the queue."""

    @property
    def sparse(self) -> bool:
        """Whether the share goes before those that have a backlog."""
        return self.credit > 0

    @property
    def claim(self) -> tuple[bool, float]:
        """The sort key of waiting shares, smallest first."""
        return (False, -self.credit) if self.sparse else (True, self.virtual)

    def rest(self, now: float, floor: float) -> None:
        """Update credit and virtual time after a time in which no step waited."""
        self.credit = min(QUANTUM, self.credit + (now - self.idle_since) * REFILL)
        self.idle_since = now
        self.virtual = max(self.virtual, floor)

    def charge(self, seconds: float) -> None:
        """Count CPU time that was used on the agent's behalf."""
        self.virtual += max(0.0, seconds - max(0.0, self.credit))
        self.credit = max(-QUANTUM, self.credit - seconds)

    def run(self, step: Callable[[], object]) -> bool:
        """Run a step now, or in its turn; return whether it ran now."""
        return self.queue.run(self, step)

    def enqueue(self, step: Callable[[], object]) -> None:
        """Run a step in its turn, in a later iteration of the loop."""
        self.queue.enqueue(self, step)

    def is_out_of_time(self) -> bool:
        """Return whether the running step should end and continue in another one."""
        return self.queue.is_out_of_time()

    def defer(self, action: Callable[[], object]) -> bool:
        """Run an action at the end of the running step, of whichever share; return False if no step is running."""
        return self.queue.defer(action)

    async def checkpoint(self) -> None:
        """Let others run if this iteration's time is used up; for tasks whose coroutine is `scheduled`."""
        if self.queue.is_out_of_time():
            await asyncio.sleep(0)

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Wrap a coroutine so that, in a task, each of its steps is a step of this share."""
        return _Scheduled(coroutine, self)


class _Scheduled(Coroutine[Any, Any, Result]):
    """Wraps a task's coroutine: a step that may not run now yields a `_Turn` instead."""

    __slots__ = ("_inner", "_share", "_turn")

    def __init__(self, inner: Coroutine[Any, Any, Result], share: Share) -> None:
        self._inner = inner
        self._share = share
        self._turn: _Turn | None = None

    def send(self, value: Any) -> Any:  # noqa: ANN401 - what tasks send and coroutines yield
        if self._turn is not None:  # called by the queue, which measures
            self._turn = None
            return self._inner.send(value)
        share = self._share
        if share.queue.may_run(share):
            return share.queue.execute(share, partial(self._inner.send, value))
        self._turn = _Turn()
        share.enqueue(self._turn.take)
        return self._turn

    def throw(self, *error: Any) -> Any:  # noqa: ANN401 - as above
        self._turn = None
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:  # noqa: ANN401 - as above
        return self._inner.__await__()


class _Turn:
    """What a task awaits until its share's turn comes; the part of a future that `asyncio.Task` uses.

    A task accepts any object with `_asyncio_future_blocking` (asyncio.isfuture). A real future would wake the task in
    the next iteration of the loop only, outside of the queue's measurement.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_wake")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asyncio_future_blocking = True
        self._cancelled = False
        self._wake: Callable[[_Turn], object]  # set by the task, at once
        self._context: Context

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, wake: Callable[["_Turn"], object], *, context: Context) -> None:
        self._wake, self._context = wake, context

    def take(self) -> None:
        """Run the task's step, unless it was cancelled."""
        if not self._cancelled:
            self._context.run(self._wake, self)

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - as asyncio calls it
        if self._cancelled:
            return False
        self._cancelled = True
        self._loop.call_soon(partial(self._wake, self), context=self._context)
        return True

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError


class NoOpBudget:
    """The CPU time that one connection may use for messages that carry no data, in seconds.

    An SSH message of forty bytes costs as much as one of 32 KiB. A connection spends the CPU time of its messages, and
    earns credit by the bytes of data that its channels carry. Beyond that it is limited to `NO_OP_SHARE`, once
    `NO_OP_BURST` is used up. An agent that pulls or pushes never comes near the limit.
    """

    __slots__ = ("_at", "_credit", "_exhausted_until")

    def __init__(self, now: float) -> None:
        self._credit = NO_OP_BURST
        self._at = now
        self._exhausted_until = float("-inf")

    def spend(self, seconds: float) -> None:
        """Charge the CPU time of messages."""
        self._credit -= seconds

    def earn(self, octets: int) -> None:
        """Credit bytes of data that a channel carried."""
        self._credit = min(NO_OP_BURST, self._credit + octets * EARNED_PER_BYTE)

    def rest(self, now: float) -> float:
        """Return the seconds to wait before the next message, 0 while there is credit."""
        self._credit = min(NO_OP_BURST, self._credit + (now - self._at) * NO_OP_SHARE)
        self._at = now
        if self._credit >= 0:
            return 0.0
        rest = -self._credit / NO_OP_SHARE
        self._exhausted_until = now + rest
        return rest

    def exhausted_recently(self, now: float) -> bool:
        """Return whether a rest is due now or ended less than `RECENT_SECONDS` ago."""
        return now < self._exhausted_until + RECENT_SECONDS


_queues: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, FairQueue]] = WeakKeyDictionary()


def fair_queue(loop: asyncio.AbstractEventLoop) -> FairQueue:
    """Return the queue that everything on this loop shares."""
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues[loop] = FairQueue()
    return queue
