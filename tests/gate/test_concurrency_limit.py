"""Slots are given in order, and none is lost."""

import asyncio

from tunnelmgr.gate.concurrency_limit import Slots


async def test_a_slot_that_is_handed_to_one_who_leaves_goes_to_the_next() -> None:
    """A slot is not lost if who waits for it is cancelled, before or at the moment of the hand-over."""
    slots = Slots(1)
    assert slots.take()

    async with asyncio.TaskGroup() as tasks:
        leaving, gone, staying = (tasks.create_task(slots.acquire(), name=name) for name in ("a", "b", "c"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        slots.release()
        gone.cancel()
        await asyncio.wait([gone, staying])

    assert (leaving.cancelled(), gone.cancelled(), staying.done()) == (True, True, True)
    slots.release()
    assert slots.take()
