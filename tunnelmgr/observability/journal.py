"""Whether a stream is systemd's journal, which reads a line's priority from its beginning (sd-daemon(3))."""

import os
from collections.abc import Mapping
from typing import Final, TextIO

PRIORITIES: Final[Mapping[str, int]] = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}
"""The journal's priorities by level (sd-daemon(3)), for `journalctl -p err`."""


def is_journal(stream: TextIO) -> bool:
    """Return whether a stream is connected to systemd's journal: `JOURNAL_STREAM` names it (systemd.exec(5))."""
    place = os.environ.get("JOURNAL_STREAM")
    if place is None:
        return False
    try:
        known = os.fstat(stream.fileno())
    except OSError:  # a stream without a descriptor
        return False
    return place == f"{known.st_dev}:{known.st_ino}"
