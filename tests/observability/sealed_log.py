"""A sealed audit log in a folder, with the means to rotate, restart and verify it."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.until import until
from tunnelmgr.observability.audit_chain import Head
from tunnelmgr.observability.audit_file import ChainSettings
from tunnelmgr.observability.audit_files import rotated_files
from tunnelmgr.observability.audit_log import AuditLog
from tunnelmgr.observability.audit_report import Verdict, judge
from tunnelmgr.observability.audit_seal import SealingKey, SealKey
from tunnelmgr.observability.audit_verify import verify_file

NOW = 1_700_000_000.0


def entries(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


class SealedLog:
    """An audit log, one process after another."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "audit.jsonl"
        private = Ed25519PrivateKey.generate()
        self.key = SealKey(private.public_key())
        self._signer = SealingKey(private, self.key.fingerprint)
        self.interval = 3600.0
        self.minimum_head = Head()
        self.settings: ChainSettings | None = None
        self.sync = False
        self.name = "registry-1"
        self._rotations = 0

    async def start(self) -> AuditLog:
        """Start a process that writes the log."""
        settings = self.settings or ChainSettings(self._signer, self.interval, self.minimum_head)
        log = AuditLog(self.file, self.name, lambda: NOW, lambda: self.sync, settings)
        await log.start()
        return log

    async def write(self, *codes: str) -> None:
        """Start a process, write entries, and stop it, which seals them."""
        log = await self.start()
        for code in codes:
            log.note(code)
        log.close()

    async def written(self, text: str) -> None:
        """Wait until a text is in the file."""
        await until(lambda: self.file.exists() and text in self.file.read_text())

    @staticmethod
    async def written_all(log: AuditLog) -> None:
        """Wait until no entry waits to be written, so that there is room for others."""
        await until(lambda: not log._waiting)

    def rotate(self) -> Path:
        """Move the file away, as logrotate does with `dateext`; return its new name."""
        self._rotations += 1
        return self.file.rename(self.file.with_name(f"{self.file.name}-{20260100 + self._rotations}"))

    def files(self) -> list[Path]:
        """Return the files, newest first."""
        return [*([self.file] if self.file.exists() else []), *sorted(rotated_files(self.file), reverse=True)]

    def verdict(self, *files: Path, keyed: bool = True) -> Verdict:
        """Verify some files, by default all of the log."""
        keys = [self.key] if keyed else []
        return judge([verify_file(file, keys) for file in files or self.files()], keyed=keyed)
