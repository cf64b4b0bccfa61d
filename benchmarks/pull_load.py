"""A load of pulls, by a client that discards the bodies.

python benchmarks/pull_load.py PORT TARGET SECONDS CONNECTIONS    # prints requests, bytes and seconds
"""

import json
import socket
import sys
import threading
import time

MIB = 1024 * 1024
END = b"\r\n\r\n"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
"""The types of manifests that a client accepts."""


def request(target: str, accept: str = "*/*") -> bytes:
    """Return the request for a target."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost:5000", "User-Agent: benchmark", f"Accept: {accept}"]
    return "\r\n".join(lines).encode() + END


def fetch(connection: socket.socket, wire: bytes, room: memoryview) -> int:
    """Send a request, read the response into `room`, and return the size of its body.

    Raises SystemExit if the response is not a complete 200 with a Content-Length.
    """
    connection.sendall(wire)
    start = b""
    while END not in start:
        count = connection.recv_into(room)
        if not count:
            raise SystemExit("no answer")
        start += room[:count]
    head, _, body = start.partition(END)
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"unexpected answer: {head[:200]!r}")
    octets = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    left = octets - len(body)
    while left:
        count = connection.recv_into(room[:left])
        if not count:
            raise SystemExit("an answer was broken off")
        left -= count
    return octets


def load_command(port: int, target: str, seconds: float, connections: int) -> list[str]:
    """Return the command that pulls `target` repeatedly on each of several connections."""
    return [sys.executable, __file__, str(port), target, str(seconds), str(connections)]


def load(port: int, target: str, seconds: float, connections: int) -> tuple[int, int, float]:
    """Pull repeatedly; return requests, bytes and seconds."""
    totals: list[tuple[int, int]] = []
    began = time.perf_counter()
    deadline = began + seconds
    threads = [
        threading.Thread(target=lambda: totals.append(pull(port, target, deadline)), name=f"load {number}")
        for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(totals) < connections:
        raise SystemExit("a pull failed")
    return sum(total[0] for total in totals), sum(total[1] for total in totals), time.perf_counter() - began


def pull(port: int, target: str, deadline: float) -> tuple[int, int]:
    """Pull on one connection until the deadline, at least once."""
    wire, room = request(target, MANIFESTS), memoryview(bytearray(MIB))
    requests = received = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not requests or time.perf_counter() < deadline:
            received += fetch(connection, wire, room)
            requests += 1
    return requests, received


if __name__ == "__main__":
    print(json.dumps(load(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
