"""Whether a stream is systemd's journal, which reads a line's priority from its beginning (sd-daemon(3))."""

import os
from typing import Final, TextIO

ERROR: Final = 3
WARNING: Final = 4


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
