"""Pulls as a client does them that looks at no body: what a load is made of."""

import socket

MIB = 1024 * 1024
END = b"\r\n\r\n"


def request(target: str, accept: str = "*/*") -> bytes:
    """Return the request for a target."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost:5000", "User-Agent: bench", f"Accept: {accept}"]
    return "\r\n".join(lines).encode() + END


def fetch(connection: socket.socket, wire: bytes, room: memoryview) -> int:
    """Send a request and read its answer through `room`; returns the bytes of its body.

    Raises SystemExit where the answer is not a whole 200 with a Content-Length.
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
