"""Runs `carry_both_ways` with one copy of asyncssh after another, each in a fork; tests run it as a program.

Each line of standard input is a folder with an asyncssh. For each it prints what `carry_both_ways` prints, or null
after a failure. A fork imports asyncssh and our own modules again, but no other library, which would double its time.
"""

import asyncio
import importlib
import os
import sys

import tests.dataplane.carry_both_ways  # noqa: F401 - imports the libraries

AGAIN = {"asyncssh", "tests", "tunnelmgr"}


def carry(folder: str) -> None:
    """Carry data both ways with the asyncssh in a folder."""
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in AGAIN]:
        del sys.modules[name]
    asyncio.run(importlib.import_module("tests.dataplane.carry_both_ways").main())


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            carry(line.rstrip("\n"))
            return
        if os.waitpid(child, 0)[1] != 0:
            print("null", flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
