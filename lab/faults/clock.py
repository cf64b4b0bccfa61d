"""A wall clock that is wrong, by libfaketime, for Python programs that are started with this environment."""

from pathlib import Path
from typing import Final

from lab.processes import LabError

_SLEEP: Final = """\
import threading
import time


def sleep(seconds):
    threading.Event().wait(seconds)


time.sleep = sleep
"""
"""Python's own sleep calls clock_nanosleep(2) with a monotonic deadline, which libfaketime 0.9.10 gets wrong."""


def skewed(seconds: int, folder: Path) -> dict[str, str]:
    """Return the environment in which the wall clock is off by this many seconds, and the monotonic clock is right.

    `folder` is an empty one for a module that Python imports at its start.
    """
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    if library is None:
        raise LabError("libfaketime is missing; install the package faketime")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SLEEP)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # the times of files
        "PYTHONPATH": str(folder),
    }
