"""A client that pulls a blob repeatedly, each time on a new connection, and prints the results.

python benchmarks/pull_loop.py PORT TARGET    # a line of JSON per pull: {"began", "ended", "saw"}, until killed

`saw` is `whole`, `cut` (the connection ended before the answer did), `refused` (no listener), `late` (no data for
30 s), or the HTTP status if it is not 200. Times are of the monotonic clock, which all processes share.
"""

import json
import socket
import sys
import time

from pull_load import END, request

SILENCE = 30.0
PAUSE = 0.05


def pull(port: int, target: str) -> str:
    """Pull once and return the result."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SILENCE) as connection:
            connection.sendall(request(target))
            return answer(connection)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "late"
    except OSError:
        return "cut"


def answer(connection: socket.socket) -> str:
    """Read the answer to its end."""
    start = b""
    while END not in start:
        more = connection.recv(65536)
        if not more:
            return "cut"
        start += more
    head, _, body = start.partition(END)
    status = head.split()[1].decode()
    left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left and status == "200":
        more = connection.recv(min(left, 1 << 20))
        if not more:
            return "cut"
        left -= len(more)
    return "whole" if status == "200" else status


def main() -> None:
    """Pull until killed."""
    while True:
        began = time.monotonic()
        saw = pull(int(sys.argv[1]), sys.argv[2])
        print(json.dumps({"began": began, "ended": time.monotonic(), "saw": saw}), flush=True)
        if saw != "whole":
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
