"""A client of server-sent events, independent of the product's code."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp


@dataclass
class Received:
    """One event as it came."""

    event: str = ""
    data: str = ""
    id: str = ""


class Events:
    """The events of one stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> Received | None:
        """Return the next event, None at the end of the stream."""
        received = Received()
        async with asyncio.timeout(10):
            while line := (await self.answer.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n" and received.event:
                    return received
                if name in {"event", "data", "id"}:
                    setattr(received, name, value)
        return None


@asynccontextmanager
async def events(url: str, connector: aiohttp.BaseConnector | None = None, **headers: str) -> AsyncIterator[Events]:
    """Open a stream."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as client,
        client.get(url, headers=named) as answer,
    ):
        yield Events(answer)
