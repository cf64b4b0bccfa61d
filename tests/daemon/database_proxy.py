"""A way to a database that can be closed for one member of a cluster while the others continue to reach it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_SOCKET = ".s.PGSQL.5432"


class DatabaseProxy:
    """Passes on connections to a server's unix socket; while it is `closed`, there are none."""

    def __init__(self, url: str, folder: Path) -> None:
        real = parse_qs(urlsplit(url).query)["host"][0]
        self.url = url.replace(real, str(folder))
        self.closed = False
        self._socket = f"{real}/{_SOCKET}"
        self._writers: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """End all connections, and refuse new ones."""
        self.closed = True
        for writer in self._writers:
            writer.transport.abort()

    def open(self) -> None:
        """Let connections pass again."""
        self.closed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one connection."""
        self._writers.add(writer)
        with suppress(OSError):
            if not self.closed:
                there_reader, there_writer = await asyncio.open_unix_connection(self._socket)
                self._writers.add(there_writer)
                await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
                self._writers.discard(there_writer)
        self._writers.discard(writer)
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def database_proxy(url: str, folder: Path) -> AsyncIterator[DatabaseProxy]:
    """Run a proxy, whose socket is in `folder`."""
    folder.mkdir()
    proxy = DatabaseProxy(url, folder)
    server = await asyncio.start_unix_server(proxy.serve, folder / _SOCKET)
    try:
        yield proxy
    finally:
        proxy.close()
        server.close()
