"""An agent in a process of its own: it behaves until it is told, a line of JSON at a time, how to attack.

It prints `{"port": …, "host_key": …}` first, and for each order one line when it is done.
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
"""Bytes that wait in our own transport before we go on: the attack is held by its victim, and not by our memory."""
WHOLE = (1 << 32) - 1
"""The largest window there is."""
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
"""What the types of channel other than TCP's say of themselves when they are opened (RFC 4254, OpenSSH's PROTOCOL)."""


class Attacker:
    """The attacks, each named as the order that begins it."""

    def __init__(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn: Any = conn
        self._accepted: list[int] = []
        self._answered = 0
        self._took = conn.process_packet
        self._conn.process_packet = self._count
        self._conn._channels = _Channels(self._conn._channels)

    def _count(self, kind: int, number: int, packet: Any) -> Any:  # noqa: ANN401 - asyncssh's form
        """Count the answers; asyncssh knows nothing of what was asked, and would end the connection."""
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

    async def _room(self) -> bool:
        """Wait until the victim has taken what was sent; False once it is gone."""
        while (transport := self._conn._transport) is not None and transport.get_write_buffer_size() > AHEAD:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return self._conn._transport is not None

    async def _flood(self, count: int, send: Callable[[int], None], unanswered: int | None = None) -> int:
        """Send so many, as fast as they are taken, or with at most so many unanswered; returns how many went."""
        for sent in range(count):
            if sent % 64 == 0:
                await asyncio.sleep(0)
                if unanswered is not None:
                    await self._answers(sent - unanswered)
                if not await self._room():
                    return sent
            send(sent)
        return count

    async def _answers(self, wanted: int) -> int:
        """Wait for so many answers, or the end; returns how many came."""
        while self._conn._transport is not None and self._answered < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self._answered

    async def requests(self, order: Order) -> Order:
        """Send global requests, each of which wants an answer."""
        packet = (String(b"nonsense@example.com"), Boolean(True))
        sent = await self._flood(order["count"], lambda _: self._conn.send_packet(GLOBAL_REQUEST, *packet))
        return {"sent": sent, "answered": await self._answers(sent)}

    async def deaf_requests(self, order: Order) -> Order:
        """Send them, and read none of the answers, until the connection is ended."""
        self._conn._transport.pause_reading()
        packet = (String(b"nonsense@example.com"), Boolean(True))
        return {"sent": await self._flood(order["count"], lambda _: self._conn.send_packet(GLOBAL_REQUEST, *packet))}

    async def opens(self, order: Order) -> Order:
        """Open channels of one type, as a rule to the listener that the controller has asked for."""
        to = String(order.get("host", "127.0.0.1")) + UInt32(order["port"]) + String("127.0.0.1") + UInt32(1)
        about = _ABOUT.get(order["type"], to)
        head = String(order["type"])

        def send(number: int) -> None:
            self._conn.send_packet(OPEN, head, UInt32(1_000_000 + number), UInt32(1 << 20), UInt32(1 << 15), about)

        sent = await self._flood(order["count"], send, order.get("unanswered"))
        return {"sent": sent, "answered": await self._answers(sent), "accepted": len(self._accepted)}

    async def debugs(self, order: Order) -> Order:
        """Send debug messages that would clear a terminal and name things."""
        text = "\x1b]0;owned\x07\x1b[2J\x00\u202e overridden by server " + "x" * order["size"]
        sent = await self._flood(order["count"], lambda _: self._conn.send_debug(text))
        # A request behind them is answered once they are all worked off.
        await self.requests({"count": 1})
        return {"sent": sent}

    async def ignores(self, order: Order) -> Order:
        """Send messages that carry nothing and want no answer."""
        sent = await self._flood(order["count"], lambda _: self._conn.send_packet(IGNORE, String(b"nothing")))
        return {"sent": sent}

    async def rekeys(self, order: Order) -> Order:
        """Begin a key exchange as soon as the one before has ended."""
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
        """Ask for a blob with the largest window and read nothing; with `drip`, show signs of life all the while."""
        _, writer = await self._conn.open_connection("127.0.0.1", order["port"], window=WHOLE)
        writer.write(REQUEST)
        await asyncio.sleep(0.05)
        if self._conn._transport is not None:
            self._conn._transport.pause_reading()
        while order["drip"] and self._conn._transport is not None:
            self._conn.send_packet(IGNORE, String(b"still here"))
            await asyncio.sleep(order["drip"])
        return {}

    async def leave(self, order: Order) -> Order:
        """Disconnect with a reason."""
        self._conn.disconnect(order["code"], order["reason"])
        return {}


class _Channels(dict[int, Any]):
    """Those of asyncssh, and for every other number one that takes what comes."""

    def __missing__(self, number: int) -> "_Sink":
        return _Sink()


class _Sink:
    def log_received_packet(self, *_packet: object) -> None:
        pass

    def process_packet(self, *_packet: object) -> bool:
        return True


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    logging.disable()
    # A real agent has a machine of its own: what its attack costs itself must not be taken from the controller here.
    with suppress(PermissionError):
        os.nice(int(sys.argv[1]))
    accepts = asyncssh.import_public_key(await loop.run_in_executor(None, sys.stdin.readline))
    async with running_sshd(Sshd(generate(), accepts)) as sshd:
        say({"port": sshd.port, "host_key": sshd.host_key})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            attack: Callable[[Order], Awaitable[Order]] = getattr(Attacker(sshd.connection), order["do"])
            say(await attack(order))


def say(answer: Order) -> None:
    """Print one line."""
    print(json.dumps(answer), flush=True)  # noqa: T201 - the way back to the test


if __name__ == "__main__":
    asyncio.run(main())
