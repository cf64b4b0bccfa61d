"""A client on an agent of a fleet that writes down what it gets, with times of the monotonic clock.

python benchmarks/fleet_client.py ask FILE                     # who answers, every 20 ms
python benchmarks/fleet_client.py pull FILE TARGET RATE        # blobs, repeatedly, at this many bytes per second
"""

import hashlib
import json
import socket
import sys
import time
from pathlib import Path

from pull_load import END, request

ASK_INTERVAL = 0.02
PATIENCE = 5.0
PIECE = 64 * 1024


def connected() -> socket.socket:
    """Return a new connection to the registry's port."""
    return socket.create_connection(("127.0.0.1", 5000), timeout=PATIENCE)


def who_answers() -> str:
    """Ask once; return the controller's name, or how it failed."""
    try:
        with connected() as connection:
            connection.sendall(request("/.well-known/tunnelmgr").replace(END, b"\r\nConnection: close" + END))
            answer = b""
            while more := connection.recv(PIECE):
                answer += more
        return str(json.loads(answer.partition(END)[2])["controller"])
    except ConnectionRefusedError:
        return "refused"
    except (OSError, ValueError, KeyError):
        return "cut"


def pull(target: str, rate: int) -> str:
    """Pull a blob at a limited rate, and return whether it arrived whole, was cut, or was not answered at all."""
    digest, began, received = hashlib.sha256(), time.monotonic(), 0
    try:
        with connected() as connection:
            connection.sendall(request(target))
            start = b""
            while END not in start:
                more = connection.recv(PIECE)
                if not more:
                    return "cut" if start else "unanswered"
                start += more
            head, _, body = start.partition(END)
            if not head.startswith(b"HTTP/1.1 200"):
                return head.split()[1].decode()
            left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while body:
                digest.update(body)
                received += len(body)
                left -= len(body)
                time.sleep(max(0.0, began + received / rate - time.monotonic()))
                body = connection.recv(min(left, PIECE)) if left else b""
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "cut" if received else "unanswered"
    return "whole" if target.endswith(digest.hexdigest()) else "cut"


def main() -> None:
    """Run until ended."""
    with Path(sys.argv[2]).open("w", buffering=1) as log:
        while True:
            began = time.monotonic()
            saw = who_answers() if sys.argv[1] == "ask" else pull(sys.argv[3], int(sys.argv[4]))
            ended = time.monotonic()
            log.write(json.dumps({"began": began, "ended": ended, "saw": saw}) + "\n")
            time.sleep(max(0.0, ASK_INTERVAL - (ended - began)))


if __name__ == "__main__":
    main()
