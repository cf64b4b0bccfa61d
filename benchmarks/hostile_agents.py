"""Hostile agents: SSH servers that accept every login, let the tunnel come up, then flood it with IGNORE messages.

python benchmarks/hostile_agents.py COUNT FIRST_PORT FOLDER    # host keys are FOLDER/0 and so on; serves until killed

The packets are sealed in batches, bypassing asyncssh, so that one process has enough for a hundred connections. Nothing
really listens on the agents' registry port: a connection to it is forwarded straight back into the tunnel.
"""

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.dataplane.ssh_packets import Seal, nonce_after, sealed

IGNORE = b"\x02\x00\x00\x00\x08harmless"
"""SSH_MSG_IGNORE with a few bytes (RFC 4253, section 11.2)."""
BATCH = 512
AHEAD = 64 * 1024
"""The most bytes that wait in our own transport."""


class Listener(asyncssh.SSHListener):
    """A listener that does not exist."""

    def close(self) -> None:
        """Do nothing."""

    async def wait_closed(self) -> None:
        """Return at once."""


class Hostile(asyncssh.SSHServer):
    """One agent's sshd."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection."""
        self._conn: Any = conn

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002 - asyncssh's form
        """Require a key: the controller refuses a login without one."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Accept keys."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002 - asyncssh's form
        """Accept every key."""
        return True

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener:  # noqa: ARG002
        """Pretend to listen."""
        return Listener()

    def connection_requested(self, dest_host: str, dest_port: int, *_: object) -> Any:  # noqa: ANN401 - asyncssh's form
        """Forward a probe back into the tunnel, and start to flood."""

        async def forward_back(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
            back_reader, back_writer = await self._conn.open_connection(dest_host, dest_port, encoding=None)
            self._tasks.create_task(pipe(back_reader, writer), name="back")
            self._tasks.create_task(self._flood(), name="flood")
            await pipe(reader, back_writer)

        return forward_back

    async def _flood(self) -> None:
        conn = self._conn
        await asyncio.sleep(1.0)
        while (transport := conn._transport) is not None:  # noqa: SLF001 - we bypass asyncssh
            if transport.get_write_buffer_size() > AHEAD or not conn._kex_complete:  # noqa: SLF001
                await asyncio.sleep(0.002)
                continue
            cipher = conn._send_encryption._cipher  # noqa: SLF001
            aead, nonce = AESGCM(cipher._key), cipher._iv  # noqa: SLF001
            wire = b"".join(sealed(Seal(aead, nonce_after(nonce, number)), IGNORE) for number in range(BATCH))
            cipher._iv = nonce_after(nonce, BATCH)  # noqa: SLF001
            conn._send_seq = (conn._send_seq + BATCH) & 0xFFFFFFFF  # noqa: SLF001
            transport.write(wire)
            await asyncio.sleep(0)


async def pipe(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
    """Copy bytes until either side ends."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (asyncssh.Error, OSError):
        return
    writer.write_eof()


async def serve(count: int, first_port: int, folder: Path) -> None:
    """Serve all agents."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * count + 200, 8 * count + 200))
    async with asyncio.TaskGroup() as tasks:
        factory: Callable[[], asyncssh.SSHServer] = lambda: Hostile(tasks)  # noqa: E731 - asyncssh takes a factory
        listening: list[Awaitable[object]] = [
            asyncssh.create_server(
                factory,
                "",
                first_port + number,
                server_host_keys=[str(folder / str(number))],
                encoding=None,
                encryption_algs=["aes128-gcm@openssh.com"],
                config=None,
            )
            for number in range(count)
        ]
        await asyncio.gather(*listening)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
