"""Blocking calls in threads that the end of the process does not wait for."""

import asyncio
import subprocess
import sys
import threading

import pytest

from tunnelmgr.threads import CallingThread, each, in_thread


async def test_the_loop_continues_until_the_answer_comes_back() -> None:
    """A call blocks only its own thread, and its answer comes back to the loop."""
    go_on = threading.Event()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(in_thread(lambda word: (go_on.wait(5), word), "said"), name="asked")
        await asyncio.sleep(0)
        go_on.set()

    assert asked.result() == (True, "said")


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt()])
async def test_what_is_raised_is_raised_where_it_is_awaited(error: BaseException) -> None:
    """An exception of the call is raised in the task that awaits it, with its own type."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await in_thread(fail)


async def test_a_cancelled_wait_does_not_wait_for_the_thread() -> None:
    """A cancelled wait ends at once, and the late answer is dropped."""
    go_on, ended = threading.Event(), threading.Event()

    def stall() -> str:
        go_on.wait(5)
        ended.set()
        return "late"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread(stall)

    assert not ended.is_set()
    go_on.set()
    assert await in_thread(ended.wait, 5)
    await asyncio.sleep(0)  # lets the late answer arrive


def test_an_answer_to_a_loop_that_has_ended_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes after the event loop has closed raises nothing in its thread."""
    go_on, raised = threading.Event(), list[object]()
    monkeypatch.setattr(threading, "excepthook", raised.append)

    async def ask() -> None:
        async with asyncio.timeout(0.01):
            await in_thread(go_on.wait, 5)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    asked = [thread for thread in threading.enumerate() if thread.name.startswith("blocking")]
    go_on.set()
    for thread in asked:
        thread.join(5)

    assert asked
    assert raised == []


def test_the_end_of_the_process_waits_for_no_thread() -> None:
    """The process ends while a call still blocks its thread."""
    program = (
        "import asyncio, time\n"
        "from tunnelmgr.threads import in_thread\n"
        "async def main():\n"
        "    async with asyncio.timeout(0.05):\n"
        "        await in_thread(time.sleep, 60)\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except TimeoutError:\n"
        "    print('over')\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout == "over\n"


def test_each_item_has_a_thread_and_the_answers_are_in_order() -> None:
    """`each` calls the function on all items at the same time, and returns the answers in order."""
    all_there = threading.Barrier(4)

    def meet(number: int) -> int:
        all_there.wait(5)
        return number * 10

    assert each(meet, [1, 2, 3, 4]) == [10, 20, 30, 40]


def test_no_items_give_no_answers() -> None:
    """`each` of no items returns no answers."""
    assert each(str, []) == []


async def test_a_calling_thread_makes_its_calls_one_after_the_other_in_one_thread() -> None:
    """Calls run in order in one thread, each with its own answer or error, also after a wait that timed out."""
    free = threading.Event()
    made: list[tuple[str, int]] = []

    def note(what: str) -> str:
        free.wait(10)
        made.append((what, threading.get_ident()))
        if what == "broken":
            raise LookupError(what)
        return what

    thread = CallingThread("test")
    thread.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await thread.call(note, "given up")
    free.set()
    with pytest.raises(LookupError, match="broken"):
        await thread.call(note, "broken")
    assert await thread.call(note, "last") == "last"
    thread.close()

    assert [what for what, _ in made] == ["given up", "broken", "last"]
    assert len({ident for _, ident in made}) == 1
