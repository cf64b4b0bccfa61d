"""What has arrived on a channel, and whether a request is in progress."""

import asyncio

from tunnelmgr.dataplane.receive_buffer import ReceiveBuffer


def test_a_channel_that_nobody_has_read_is_idle() -> None:
    """A client that has just connected has no request in progress, so that a stop does not end its channel."""
    received = ReceiveBuffer()
    received.append(b"GET")

    assert received.idle


async def test_a_request_is_in_progress_from_its_first_byte_until_the_next_one_is_awaited() -> None:
    """A channel is not idle while a request is served, and is idle again when the gate waits for the next one."""
    received = ReceiveBuffer()
    received.append(b"GET")
    assert await received.readable()
    received.take()
    during = received.idle

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(received.readable(), name="next request")
        await asyncio.sleep(0)
        after = received.idle
        received.drain()

    assert (during, after, waiting.result()) == (False, True, False)


def test_a_raw_stream_is_not_idle_while_it_has_nothing_to_read() -> None:
    """A raw stream, which never waits for a request, is in progress as soon as it is read."""
    received = ReceiveBuffer()

    assert received.take() is None

    assert not received.idle
