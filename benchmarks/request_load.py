"""A load of small requests, by one thread that waits for all its connections at once.

    python benchmarks/request_load.py PORT TARGET SECONDS CONNECTIONS

Each connection sends its next request as soon as the last is answered. Prints the number of requests, the seconds, and
the 99th percentile of the time for an answer in milliseconds.
"""

import json
import selectors
import socket
import sys
import time

from pull_load import END, MANIFESTS, MIB, request


class Client:
    """One connection, with the answer that it waits for."""

    def __init__(self, port: int, wire: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wire = wire
        self._received = b""

    def send(self) -> None:
        """Send the request."""
        self._sent_at = time.perf_counter()
        self.socket.sendall(self._wire)

    def receive(self) -> float | None:
        """Take what has arrived; returns the seconds for the answer once it is complete, None before.

        Raises SystemExit if it is not a 200 with a Content-Length.
        """
        self._received += self.socket.recv(MIB)
        head, end, body = self._received.partition(END)
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"unexpected answer: {head[:200]!r}")
        if len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return None
        self._received = b""
        return time.perf_counter() - self._sent_at


def request_command(port: int, target: str, seconds: float, connections: int) -> list[str]:
    """Return the command that runs the load."""
    return [sys.executable, __file__, str(port), target, str(seconds), str(connections)]


def load(port: int, target: str, seconds: float, connections: int) -> tuple[int, float, float]:
    """Run the load; return the number of requests, the seconds, and the 99th percentile in milliseconds."""
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            client = Client(port, request(target, MANIFESTS))
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            for key, _ in selector.select(10):
                if (answered := key.data.receive()) is not None:
                    took.append(answered)
                    key.data.send()
        seconds = time.perf_counter() - began
    return len(took), seconds, sorted(took)[int(len(took) * 0.99)] * 1e3


if __name__ == "__main__":
    print(json.dumps(load(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
