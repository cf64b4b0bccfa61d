"""Blocking calls in daemon threads, which the end of the process does not wait for.

A cloud that stalls blocks its thread for as long as its client's timeouts and retries allow. An executor's threads are
joined when the process ends, so a stop would take that long too.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


async def in_thread(function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
    """Call `function` in a thread of its own and return its answer, or raise what it raised.

    If the wait is cancelled, the thread continues, and its answer is dropped.
    """
    answer, work = _prepared(lambda: function(*args, **kwargs))
    threading.Thread(target=work, name=f"blocking {getattr(function, '__name__', function)}", daemon=True).start()
    return await answer


class CallingThread:
    """One thread that makes calls one at a time: for calls that are too frequent for a thread each."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to make calls."""
        self._thread.start()

    async def call(self, function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
        """Call `function` after all earlier calls, and return its answer or raise what it raised; see `in_thread`."""
        answer, work = _prepared(lambda: function(*args, **kwargs))
        self._calls.put(work)
        return await answer

    def close(self) -> None:
        """End the thread after the calls so far; does not wait for them."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _prepared(function: Callable[[], Answer]) -> tuple[asyncio.Future[Answer], Callable[[], None]]:
    """Return a future of the running loop, and the call for another thread that settles it."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def settle(value: Answer | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast("Answer", value))  # without an error there is one

    def work() -> None:
        value: Answer | None = None
        error: BaseException | None = None
        try:
            value = function()
        except BaseException as raised:  # noqa: BLE001 - raised again in the task that awaits it
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    return answer, work


def each(function: Callable[[Item], Answer], items: Iterable[Item]) -> Sequence[Answer]:
    """Call `function` on every item at once, a thread each, and return the answers in order.

    `function` must not raise.
    """
    wanted = list(items)
    answers: dict[int, Answer] = {}

    def work(at: int, item: Item) -> None:
        answers[at] = function(item)

    threads = [
        threading.Thread(target=work, args=(at, item), name=f"blocking {item}", daemon=True)
        for at, item in enumerate(wanted)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[at] for at in range(len(wanted))]
