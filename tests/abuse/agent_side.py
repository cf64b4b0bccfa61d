"""An agent in a process of its own that attacks on command, a line of JSON each.

It prints `{"port": …, "host_key": …}` first, and one line when a command is done.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncssh
from asyncssh.packet import Boolean, String, UInt32

from tests.ssh.ssh_server import Sshd, generate, running_sshd

IGNORE, GLOBAL_REQUEST, SUCCESS, FAILURE, OPEN, OPEN_CONFIRMATION, OPEN_FAILURE = 2, 80, 81, 82, 90, 91, 92
AHEAD = 64 * 1024
"""Bytes unsent in this process above which an attack waits, so that its rate is what the controller reads."""
WHOLE = (1 << 32) - 1
"""The largest window (RFC 4254, section 5.1)."""
REQUEST = b"GET /v2/team/image/blobs/sha256:" + b"0" * 64 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
Order = dict[str, Any]
_PATH = String("/run/docker.sock") + String("")
_ABOUT = {
    "session": b"",
    "auth-agent@openssh.com": b"",
    "x11": String("127.0.0.1") + UInt32(6000),
    "forwarded-streamlocal@openssh.com": _PATH,
    "direct-streamlocal@openssh.com": _PATH + UInt32(0),
    "tun@openssh.com": UInt32(1) + UInt32(0),
}
"""The type-specific data of channel opens other than TCP's (RFC 4254, OpenSSH's PROTOCOL)."""


class Attacker:
    """The attacks; the name of each method is the command that starts it."""

    def __init__(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn: Any = conn
        self._accepted: list[int] = []
        self._answered = 0
        self._took = conn.process_packet
        self._conn.process_packet = self._count
        self._conn._channels = _Channels(self._conn._channels)
        self._progress = asyncio.Event()
        if self._conn._transport is not None:
            self._conn._transport.set_write_buffer_limits(AHEAD)
        for name in ("resume_writing", "connection_lost"):
            self._call_also_on_progress(name)

    def _call_also_on_progress(self, name: str) -> None:
        """Have a call of the transport wake the attack that waits."""
        call = getattr(self._conn, name)

        def called(*arguments: object) -> None:
            call(*arguments)
            self._progress.set()

        setattr(self._conn, name, called)

    async def _wait_for_progress(self) -> None:
        """Wait for a response, for room to send, or for the end of the connection."""
        self._progress.clear()
        await self._progress.wait()

    def _count(self, kind: int, number: int, packet: Any) -> Any:  # noqa: ANN401 - asyncssh's form
        """Count the responses to the attacks; asyncssh did not send the requests, and would end the connection."""
        self._progress.set()
        if kind in {SUCCESS, FAILURE}:
            self._answered += 1
            return True
        if kind not in {OPEN_CONFIRMATION, OPEN_FAILURE}:
            return self._took(kind, number, packet)
        channel = packet.get_uint32()
        if dict.__contains__(self._conn._channels, channel):
            packet._idx -= 4
            return self._took(kind, number, packet)
        self._answered += 1
        if kind == OPEN_CONFIRMATION:
            self._accepted.append(packet.get_uint32())
        return True

    async def _wait_for_room(self) -> bool:
        """Wait until the controller has taken what was sent; returns False once the connection has ended."""
        while (transport := self._conn._transport) is not None and transport.get_write_buffer_size() > AHEAD:
            await self._wait_for_progress()
        return self._conn._transport is not None

    async def _flood(self, count: int, send: Callable[[int], None], unanswered: int | None = None) -> int:
        """Send `count` messages, at most `unanswered` of them without a response; returns how many were sent."""
        for sent in range(count):
            if sent % 64 == 0:
                await asyncio.sleep(0)
                if unanswered is not None:
                    await self._wait_for_answers(sent - unanswered)
                if not await self._wait_for_room():
                    return sent
            send(sent)
        return count

    async def _wait_for_answers(self, wanted: int) -> int:
        """Wait for `wanted` responses, or the end of the connection; returns how many arrived."""
        while self._conn._transport is not None and self._answered < wanted:
            await self._wait_for_progress()
        return self._answered

    async def requests(self, order: Order) -> Order:
        """Send global requests that want a response."""
        packet = (String(b"nonsense@example.com"), Boolean(True))
        sent = await self._flood(order["count"], lambda _: self._conn.send_packet(GLOBAL_REQUEST, *packet))
        return {"sent": sent, "answered": await self._wait_for_answers(sent)}

    async def unread_requests(self, order: Order) -> Order:
        """Send global requests and read none of the responses, until the connection ends."""
        self._conn._transport.pause_reading()
        packet = (String(b"nonsense@example.com"), Boolean(True))
        return {"sent": await self._flood(order["count"], lambda _: self._conn.send_packet(GLOBAL_REQUEST, *packet))}

    async def opens(self, order: Order) -> Order:
        """Open channels of one type, by default to the listener that the controller has requested."""
        to = String(order.get("host", "127.0.0.1")) + UInt32(order["port"]) + String("127.0.0.1") + UInt32(1)
        about = _ABOUT.get(order["type"], to)
        head = String(order["type"])

        def send(number: int) -> None:
            self._conn.send_packet(OPEN, head, UInt32(1_000_000 + number), UInt32(1 << 20), UInt32(1 << 15), about)

        sent = await self._flood(order["count"], send, order.get("unanswered"))
        return {"sent": sent, "answered": await self._wait_for_answers(sent), "accepted": len(self._accepted)}

    async def debugs(self, order: Order) -> Order:
        """Send debug messages with escape sequences."""
        text = "\x1b]0;owned\x07\x1b[2J\x00\u202e overridden by server " + "x" * order["size"]
        sent = await self._flood(order["count"], lambda _: self._conn.send_debug(text))
        # The request after them is answered once all of them have been processed.
        await self.requests({"count": 1})
        return {"sent": sent}

    async def ignores(self, order: Order) -> Order:
        """Send IGNORE messages, which want no response."""
        sent = await self._flood(order["count"], lambda _: self._conn.send_packet(IGNORE, String(b"nothing")))
        return {"sent": sent}

    async def rekeys(self, order: Order) -> Order:
        """Start a key exchange as soon as the previous one has ended."""
        done = 0
        for _ in range(order["count"]):
            if self._conn._transport is None:
                break
            self._conn._send_kexinit()
            self._conn._kexinit_sent = True
            while not self._conn._kex_complete and self._conn._transport is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            done += 1
        return {"done": done}

    async def pull_unread(self, order: Order) -> Order:
        """Request a blob with the largest window and read no more than its first byte.

        With `drip`, an IGNORE message is sent every `drip` seconds meanwhile.
        """
        reader, writer = await self._conn.open_connection("127.0.0.1", order["port"], window=WHOLE)
        writer.write(REQUEST)
        with suppress(asyncio.IncompleteReadError):
            await reader.readexactly(1)
        if self._conn._transport is not None:
            self._conn._transport.pause_reading()
        while order["drip"] and self._conn._transport is not None:
            self._conn.send_packet(IGNORE, String(b"still here"))
            await asyncio.sleep(order["drip"])  # the drip is the attack
        return {}

    async def leave(self, order: Order) -> Order:
        """Disconnect with a reason."""
        self._conn.disconnect(order["code"], order["reason"])
        return {}


class _Channels(dict[int, Any]):
    """asyncssh's channels, and for any other number one that accepts every message."""

    def __missing__(self, number: int) -> "_Sink":
        return _Sink()


class _Sink:
    def log_received_packet(self, *_packet: object) -> None:
        pass

    def process_packet(self, *_packet: object) -> bool:
        return True


async def main() -> None:
    """Serve commands until standard input ends."""
    loop = asyncio.get_running_loop()
    logging.disable()
    # A real agent has a machine of its own, so its attack must not take CPU time from the controller here.
    with suppress(PermissionError):
        os.nice(int(sys.argv[1]))
    accepts = asyncssh.import_public_key(await loop.run_in_executor(None, sys.stdin.readline))
    async with running_sshd(Sshd(generate(), accepts)) as sshd:
        print_line({"port": sshd.port, "host_key": sshd.host_key})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            attack: Callable[[Order], Awaitable[Order]] = getattr(Attacker(sshd.connection), order["do"])
            print_line(await attack(order))


def print_line(answer: Order) -> None:
    """Print one line of JSON."""
    print(json.dumps(answer), flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    asyncio.run(main())
