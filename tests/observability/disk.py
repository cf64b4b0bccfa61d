"""A disk for the audit log that fails or stalls as the test says."""

import os
import threading

import pytest


class Disk:
    """Replaces `os.write`, and fails or stalls as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = os.write
        self.full = False
        self.free = threading.Event()
        self.free.set()
        self.sizes: list[int] = []
        monkeypatch.setattr("tunnelmgr.observability.audit_file.os.write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        """Write, or raise the error of a full disk."""
        self.free.wait(10)
        if self.full and data:
            raise OSError(28, "No space left on device")
        self.sizes.append(data.count(b"\n"))
        return self._write(fd, data)
