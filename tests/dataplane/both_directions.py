"""Carries data both ways over one channel whose other end reads late; run by tests as a program of its own.

Prints, as JSON, whether the fast path was on and why not, and the most bytes that waited in each direction.
"""

import asyncio
import json

import tests.ssh.conftest  # noqa: F401 - it heeds PROVING
from tests.dataplane.both_ends import CONTENT, KIB, MIB, Both, opened
from tests.ssh.ssh_server import until
from tunnelmgr.dataplane.fast_path import fast_path_status

WINDOW = 64 * KIB


async def to_the_agent(both: Both) -> int:
    """Pour to an agent that does not read for a while; returns how many bytes waited in asyncssh and on the line."""
    both.reader.channel.pause_reading()
    async with asyncio.TaskGroup() as tasks:
        carrying = tasks.create_task(both.carried(CONTENT), name="carry")
        await until(lambda: sum(both.bulk) + both.connection._line.written >= WINDOW)
        await asyncio.sleep(0.02)
        waiting = both.chan.get_write_buffer_size() + both.connection._line.get_write_buffer_size()
        both.reader.channel.resume_reading()
    assert carrying.result() == CONTENT
    return waiting


async def from_the_agent(both: Both) -> int:
    """Read late and slowly what an agent sends; returns the most bytes that waited to be read."""
    both.writer.write(CONTENT)
    both.writer.write_eof()
    await until(lambda: both.ours._waiting >= 256 * KIB)
    await asyncio.sleep(0.02)
    most, got = both.ours._waiting, b""
    while data := await both.ours.read():
        got += data
        most = max(most, both.ours._waiting)
        await asyncio.sleep(0)
    assert got == CONTENT
    return most


async def main() -> None:
    """Carry data both ways, with key exchanges that the agent begins in between."""
    async with asyncio.timeout(60), opened(WINDOW, rekey_bytes=MIB) as both:
        waited = {"to_agent": await to_the_agent(both), "from_agent": await from_the_agent(both)}
    path = fast_path_status()
    print(json.dumps({"active": path.active, "reason": path.reason, "bulk": sum(both.bulk), **waited}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
