"""A minimal Debian or Ubuntu for machines with systemd, made by mmdebstrap once for a checkout.

It is of the host's release, or of that which `DEBIAN_SUITE` names, and comes from the archive that apt uses there.
`DEBIAN_ROOT` names a folder to use instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from lab import processes
from lab.made_once import made_once

_ROOT = Path(__file__).parents[1]
_FOLDER = _ROOT / "build/debian"
_SCRIPT = _ROOT / "packaging/make_root.sh"
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "iproute2", "openssh-server", "curl", "ca-certificates"),
    *("python3", "python3-apt", "python3-venv", "adduser", "logrotate", "man-db", "bash-completion", "zsh", "fish"),
)
# Each machine makes host keys of its own. The unit's check of sshd's configuration needs them. Ubuntu starts sshd at
# the first connection, so the socket makes them there.
_HOST_KEYS = """\
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""
_HOST_KEYS_OF_SOCKET = """\
[Socket]
ExecStartPre=/usr/bin/ssh-keygen -A
"""
_CUSTOMIZE = f"""
echo force-unsafe-io >"$1"/etc/dpkg/dpkg.cfg.d/unsafe-io
rm "$1"/etc/ssh/ssh_host_*
mkdir "$1"/etc/systemd/system/ssh.service.d "$1"/etc/systemd/system/ssh.socket.d
cat >"$1"/etc/systemd/system/ssh.service.d/host-keys.conf <<'END'
{_HOST_KEYS}END
cat >"$1"/etc/systemd/system/ssh.socket.d/host-keys.conf <<'END'
{_HOST_KEYS_OF_SOCKET}END
"""
_TIMEOUT = 900.0  # seconds; it takes about one minute


def debian_root() -> Path:
    """Return the folder of the Debian, and make it if it is missing or was made for other packages."""
    if given := os.environ.get("DEBIAN_ROOT"):
        return Path(given)
    suite = os.environ.get("DEBIAN_SUITE") or platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = hashlib.sha256(repr((_PACKAGES, _CUSTOMIZE)).encode()).hexdigest()[:12]
    return made_once(_FOLDER / f"{suite}-{recipe}", lambda folder: _make(suite, folder))


def _make(suite: str, folder: Path) -> None:
    options = [f"--include={','.join(_PACKAGES)}", f"--customize-hook={_CUSTOMIZE}"]
    processes.run(["sh", str(_SCRIPT), suite, str(folder), *options], check=True, timeout=_TIMEOUT)
