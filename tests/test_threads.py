"""Blocking calls in threads that nobody has to wait for."""

import asyncio
import subprocess
import sys
import threading

import pytest

from tunnelmgr.threads import CallingThread, each, in_thread


async def test_the_answer_comes_back_and_the_loop_goes_on_meanwhile() -> None:
    """The call blocks its own thread only."""
    go_on = threading.Event()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(in_thread(lambda word: (go_on.wait(5), word), "said"), name="asked")
        await asyncio.sleep(0)
        go_on.set()

    assert asked.result() == (True, "said")


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt()])
async def test_what_is_raised_is_raised_where_it_is_awaited(error: BaseException) -> None:
    """Whatever it is."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await in_thread(fail)


async def test_a_cancelled_wait_does_not_wait_for_the_thread() -> None:
    """And the answer that comes too late is dropped."""
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


def test_an_answer_to_a_loop_that_has_ended_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may outlive everything that it was asked by."""
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
    """A cloud that stalls does not hold up a stop."""
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
    """All are under way at once: each waits for all the others."""
    all_there = threading.Barrier(4)

    def meet(number: int) -> int:
        all_there.wait(5)
        return number * 10

    assert each(meet, [1, 2, 3, 4]) == [10, 20, 30, 40]


def test_nothing_to_do_is_done_at_once() -> None:
    """A source without regions, say."""
    assert each(str, []) == []


async def test_a_calling_thread_makes_its_calls_one_after_the_other_in_one_thread() -> None:
    """Each call gets its own answer or error, and a wait that is given up leaves the next call its turn."""
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
