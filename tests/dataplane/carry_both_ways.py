"""Carries data both ways over one channel whose other end reads late.

Prints as JSON whether the fast path was active, why not, and the maximum of bytes that waited in each direction.
"""

import asyncio
import json

from tests.dataplane.channel_pair import CONTENT, KIB, MIB, ChannelPair, open_channel_pair
from tests.ssh import newest_asyncssh  # noqa: F401 - its effect is wanted
from tests.until import until
from tunnelmgr.dataplane.fast_path import fast_path_status

WINDOW = 64 * KIB


async def to_the_agent(pair: ChannelPair) -> int:
    """Send to an agent that does not read for a while; returns how many bytes waited in asyncssh and below."""
    pair.reader.channel.pause_reading()
    async with asyncio.TaskGroup() as tasks:
        carrying = tasks.create_task(pair.carried(CONTENT), name="carry")
        await until(lambda: sum(pair.bulk) + pair.connection._transport.bytes_written >= WINDOW)
        await until(lambda: pair.source.stream._reader is None)
        waiting = pair.chan.get_write_buffer_size() + pair.connection._transport.get_write_buffer_size()
        pair.reader.channel.resume_reading()
    assert carrying.result() == CONTENT
    return waiting


async def from_the_agent(pair: ChannelPair) -> int:
    """Read late and slowly what an agent sends; returns the maximum of bytes that waited to be read."""
    pair.writer.write(CONTENT)
    pair.writer.write_eof()
    await until(lambda: pair.ours._received.size >= 256 * KIB)
    await pair.agent_processed()
    most, got = pair.ours._received.size, b""
    while data := await pair.ours.read():
        got += data
        most = max(most, pair.ours._received.size)
        await asyncio.sleep(0)
    assert got == CONTENT
    return most


async def main() -> None:
    """Carry data both ways, with key exchanges that the agent starts meanwhile."""
    async with asyncio.timeout(60), open_channel_pair(WINDOW, rekey_bytes=MIB) as pair:
        waited = {"to_agent": await to_the_agent(pair), "from_agent": await from_the_agent(pair)}
    path = fast_path_status()
    facts = {"active": path.active, "reason": path.reason, "bulk": sum(pair.bulk), **waited}
    print(json.dumps(facts), flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    asyncio.run(main())
