"""The last entry that a destination has confirmed, kept in a file beside the audit log."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tunnelmgr.observability.audit_chain import Head
from tunnelmgr.observability.audit_files import CURSOR

_MODE = 0o640


@dataclass(frozen=True, slots=True)
class Cursor:
    """The file that holds the position of one destination."""

    file: Path

    @classmethod
    def of(cls, audit: Path, destination: str) -> "Cursor":
        """Return the cursor of a destination: `audit.jsonl.NAME.cursor`."""
        return cls(audit.with_name(f"{audit.name}.{destination}{CURSOR}"))

    def load(self) -> Head | None:
        """Return the position; None if there is none, or if it cannot be read, so that entries are sent again."""
        try:
            return Head.from_json(json.loads(self.file.read_bytes()))
        except (OSError, ValueError):
            return None

    def save(self, head: Head) -> None:
        """Write the position in place of the old one; raises OSError."""
        unfinished = self.file.with_name(f"{self.file.name}.tmp")
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        with os.fdopen(fd, "wb") as out:
            out.write(json.dumps(head.as_json()).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(self.file)
