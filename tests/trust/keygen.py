"""Keys and certificates, made by the real ssh-keygen."""

import base64
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tunnelmgr.trust.certificate import Authority


@dataclass(frozen=True)
class Keygen:
    """Makes keys and certificates in a folder."""

    folder: Path

    def key(self, name: str, kind: str = "ed25519", *options: str) -> str:
        """Make a key pair, unless there is one of that name, and return the public half as `type base64`."""
        file = self.folder / name
        argv = ["ssh-keygen", "-q", "-t", kind, *options, "-N", "", "-C", "", "-f", file]
        if not file.exists():
            subprocess.run(argv, check=True, timeout=30)
        return " ".join(file.with_suffix(".pub").read_text().split()[:2])

    def sign(self, host: str, *options: str, authority: str = "ca", user: bool = False) -> bytes:
        """Sign a key that was made before, and return the certificate's blob."""
        public = self.folder / f"{host}.pub"
        kind = [] if user else ["-h"]
        argv = ["ssh-keygen", "-q", "-s", self.folder / authority, *kind, "-I", "test", *options, public]
        subprocess.run(argv, check=True, timeout=30)
        return base64.b64decode((self.folder / f"{host}-cert.pub").read_text().split()[1])

    def authority(self, name: str = "ca", **facts: object) -> Authority:
        """Return an authority that was made before as one to trust."""
        key = " ".join((self.folder / f"{name}.pub").read_text().split()[:2])
        return Authority(name, key, **facts)  # type: ignore[arg-type]
