"""A client on an agent that sends requests without waiting for responses, one buffer after another.

python benchmarks/flood_client.py PORT KIND CHANNELS SECONDS    # prints the number of bytes that it sent and received

KIND is one of `KINDS`. Each connection always has requests in flight, so only the window of its channel and the fair
queue can slow it down.
"""

import itertools
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BURST = 64
"""Requests in one buffer."""
ROOM = 256 * 1024


def refused() -> Iterator[bytes]:
    """Send the shortest request that the gate refuses."""
    return itertools.repeat(b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * BURST)


def base() -> Iterator[bytes]:
    """Request the API's version, which every group may."""
    return itertools.repeat(b"GET /v2/ HTTP/1.1\r\nHost:a\r\n\r\n" * BURST)


def missing() -> Iterator[bytes]:
    """Request manifests that do not exist, each with another tag."""
    for first in itertools.count(step=BURST):
        numbers = range(first, first + BURST)
        yield b"".join(b"GET /v2/team/app/manifests/t%d HTTP/1.1\r\nHost:a\r\n\r\n" % number for number in numbers)


def well_known() -> Iterator[bytes]:
    """Request the gate's well-known path."""
    return itertools.repeat(b"GET /.well-known/tunnelmgr HTTP/1.1\r\nHost:a\r\n\r\n" * BURST)


def catalog() -> Iterator[bytes]:
    """Request the whole catalog."""
    return itertools.repeat(b"GET /v2/_catalog?n=1000 HTTP/1.1\r\nHost:a\r\n\r\n")


def chunks(size: int) -> Iterator[bytes]:
    """Upload an endless blob in chunks of this size."""
    head = b"POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost:a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    return itertools.chain((head,), itertools.repeat(chunk * max(1, 16384 // len(chunk))))


KINDS = {
    "refused": refused,
    "base": base,
    "missing": missing,
    "well-known": well_known,
    "catalog": catalog,
    "chunks-1": lambda: chunks(1),
    "chunks-16": lambda: chunks(16),
    "chunks-256": lambda: chunks(256),
}


@dataclass
class Flood:
    """One connection that always has data to send."""

    connection: socket.socket
    buffers: Iterator[bytes]
    sent: int = 0
    received: int = 0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))

    def step(self, events: int, room: memoryview) -> bool:
        """Send and receive as much as the kernel allows; return whether the connection is still open."""
        if events & selectors.EVENT_READ:
            count = self.connection.recv_into(room)
            self.received += count
            if not count:
                return False
        if events & selectors.EVENT_WRITE:
            self.unsent = self.unsent or memoryview(next(self.buffers))
            count = self.connection.send(self.unsent)
            self.sent += count
            self.unsent = self.unsent[count:]
        return True


def flood(port: int, kind: str, channels: int, seconds: float) -> tuple[int, int, int]:
    """Flood, and connect again if the gate closes a channel; return bytes sent, bytes received and connections."""
    room = memoryview(bytearray(ROOM))
    sent = received = connections = 0
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setblocking(False)
            selector.register(
                connection, selectors.EVENT_READ | selectors.EVENT_WRITE, Flood(connection, KINDS[kind]())
            )

        for _ in range(channels):
            begin()
        while time.monotonic() < deadline:
            for key, events in selector.select(0.1):
                one: Flood = key.data
                try:
                    is_open = one.step(events, room)
                except OSError:
                    is_open = False
                if not is_open:
                    sent, received, connections = sent + one.sent, received + one.received, connections + 1
                    selector.unregister(one.connection)
                    one.connection.close()
                    begin()
        for key in list(selector.get_map().values()):
            sent, received, connections = sent + key.data.sent, received + key.data.received, connections + 1
    return sent, received, connections


if __name__ == "__main__":
    print(json.dumps(flood(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
