"""Telling systemd how the daemon does, by the protocol of sd_notify(3); without systemd all of it is a no-op."""

import os
import socket


def notify(*lines: str) -> None:
    """Send assignments such as `READY=1`; an unreachable manager is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.sendall("\n".join(lines).encode())
        except OSError:
            return


def watchdog_interval() -> float | None:
    """Return the seconds between two signs of life, half of what systemd allows (WATCHDOG_USEC); None without one."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed) / 2_000_000 if allowed.isdigit() else None
