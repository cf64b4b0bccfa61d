"""What an instance prints on its console while it boots."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT = """\
[    0.000000] Linux version 6.1.0-18-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0)
[    0.000000] Command line: BOOT_IMAGE=/boot/vmlinuz-6.1.0-18-cloud-amd64 root=PARTUUID=2d6f1a ro console=ttyS0
[    1.204511] systemd[1]: Detected virtualization amazon.
[    4.811203] cloud-init[412]: Cloud-init v. 22.4.2 running 'init'. Up 4.79 seconds.
ci-info: +++++++++++++++++++++Authorized keys from /home/admin/.ssh/authorized_keys for user admin++++++++++++++++++++++
ci-info: | Keytype |                Fingerprint (sha256)               | Options | Comment  |
ci-info: | ssh-rsa | 3b:1d:8e:52:0a:61:77:c4:f0:9d:2e:b8:15:46:aa:03:c1 |    -    | operator |
"""


def host_key_console(host_key_lines: Sequence[str]) -> str:
    """Return the console of a booted instance with these public host keys, one line (`ssh-ed25519 AAAA…`) each.

    As cloud-init's `write-ssh-key-fingerprints` does it: the fingerprints go through syslog, the keys are bare lines.
    """
    frame = "#" * 61
    fingerprints = ["-----BEGIN SSH HOST KEY FINGERPRINTS-----"]
    fingerprints += [_fingerprint(line) for line in host_key_lines]
    fingerprints += ["-----END SSH HOST KEY FINGERPRINTS-----"]
    lines = [
        *_BOOT.splitlines(),
        *(f"<14>Nov 23 18:00:07 ec2: {text}" for text in ("", frame, *fingerprints, frame)),
        "-----BEGIN SSH HOST KEY KEYS-----",
        *(f"{line} root@ip-10-77-0-11" for line in host_key_lines),
        "-----END SSH HOST KEY KEYS-----",
        "[    7.930144] cloud-init[598]: Cloud-init v. 22.4.2 finished. Datasource DataSourceEc2Local. Up 7.92 seconds",
        "",
        "Debian GNU/Linux 12 ip-10-77-0-11 ttyS0",
    ]
    return "".join(f"{line}\r\n" for line in lines)


def _fingerprint(line: str) -> str:
    kind, _, rest = line.partition(" ")
    try:
        blob = base64.b64decode(rest.partition(" ")[0])
    except binascii.Error:  # a test may well print a broken key
        blob = rest.encode()
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"256 SHA256:{digest} root@ip-10-77-0-11 ({kind.removeprefix('ssh-').upper()})"
