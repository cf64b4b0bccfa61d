"""`console`: evidence from the host key block on an instance's console."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lab.ec2 import host_key_console
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.console import MAX_CONCURRENT_CALLS, ConsoleKeys

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


@dataclass
class FakeConsoles:
    """A source whose consoles `read` returns."""

    read: Callable[[Agent], str]

    def console_output(self, agent: Agent) -> str:
        """Return the console's text."""
        return self.read(agent)


async def test_the_console_method_reads_the_block() -> None:
    """The evidence is the keys of the block in the text that the source returns."""
    keys = ConsoleKeys(FakeConsoles(lambda agent: host_key_console([KEY]) if agent == AGENT else ""))

    assert await keys.trust_for(AGENT) == HostTrust(Method.CONSOLE, (KEY,))


@pytest.mark.parametrize("text", ["", "still booting"])
async def test_a_console_without_a_block_is_not_evidence_yet(text: str) -> None:
    """A console without a complete block is not evidence yet, with the reason."""
    with pytest.raises(HostKeyUnknownError, match="no host key block yet"):
        await ConsoleKeys(FakeConsoles(lambda _: text)).trust_for(AGENT)


async def test_few_consoles_are_read_at_once() -> None:
    """At most four consoles are read at a time, because the call has the lowest quota of all."""
    reading: list[Agent] = []
    started, go_on = threading.Semaphore(0), threading.Event()

    def read(agent: Agent) -> str:
        reading.append(agent)
        started.release()
        go_on.wait(5)
        return host_key_console([KEY])

    keys = ConsoleKeys(FakeConsoles(read))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(keys.trust_for(AGENT), name=f"search {number}")
        for _ in range(MAX_CONCURRENT_CALLS):
            await asyncio.to_thread(started.acquire)
        at_first = len(reading)
        go_on.set()

    assert at_first == MAX_CONCURRENT_CALLS
    assert len(reading) == 20


async def test_a_console_that_cannot_be_read_says_why() -> None:
    """The reason of AWS is passed on."""

    def refused(_: Agent) -> str:
        raise HostKeyUnknownError("the permission ec2:GetConsoleOutput is missing")

    with pytest.raises(HostKeyUnknownError, match="ec2:GetConsoleOutput is missing"):
        await ConsoleKeys(FakeConsoles(refused)).trust_for(AGENT)


async def test_blocks_that_differ_are_no_evidence() -> None:
    """If two blocks differ, at least one is forged, so neither is evidence."""
    text = host_key_console([KEY]) + host_key_console([KEY[:-1] + "Q"])

    with pytest.raises(HostKeyUnknownError, match="several host key blocks, which differ"):
        await ConsoleKeys(FakeConsoles(lambda _: text)).trust_for(AGENT)
