"""The sd_notify(3) protocol: readiness, status and watchdog; a no-op without systemd."""

import os
import socket


def notify(*lines: str) -> None:
    """Send assignments such as `READY=1`; errors are ignored, because a daemon runs without its manager.

    Does not wait: a message is lost if the manager has not read some earlier ones.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.setblocking(False)
        try:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.sendall("\n".join(lines).encode())
        except OSError:
            return


def extend_timeout(seconds: float) -> None:
    """Have systemd wait for this start or stop for `seconds` from now, also beyond its own limit (sd_notify(3))."""
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def watchdog_interval() -> float | None:
    """Return the seconds between two watchdog messages, half of WATCHDOG_USEC; None if systemd sets no watchdog."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed) / 2_000_000 if allowed.isdigit() else None
