"""What a socket to an agent asks of the kernel, so that a long or lossy path carries as much as it can.

- A send buffer as large as delay times bandwidth: with the kernel's own, four streams at 20 ms get half. It is asked
  for only where it is granted whole, for a buffer that was set no longer grows by itself.
- BBR (`tcp(7)`, TCP_CONGESTION): it does not take every lost packet for a jam, as CUBIC does. Its pacing costs CPU,
  a fifth of what a tunnel takes, so it is asked for only where the round trip is long enough for losses to matter, and
  put off where the path is short and BBR the kernel's default.
- Acknowledgements at once, as long as the agent's sshd holds back by Nagle's algorithm what is small (RFC 9293, section
  3.7.4): with the kernel's delayed ones, each of its answers to a new tunnel waits for 40 ms.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

SEND_BUFFER: Final = 4 * 1024 * 1024
"""Bytes on their way to one agent that the kernel may hold."""
CONGESTION_CONTROL: Final = "bbr"
UNPACED: Final = "cubic"
NEAR: Final = 1000
"""Microseconds of round trip below which a lost packet is made good before it matters."""
_RTT = struct.Struct("=68xI")
"""Where `struct tcp_info` has `tcpi_rtt` (linux/tcp.h)."""


def tune(connected: socket.socket) -> None:
    """Ask for all of it; what the kernel does not grant is left as it was."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _granted_buffer() >= SEND_BUFFER:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if _round_trip(connected) >= NEAR:
        _control(connected, CONGESTION_CONTROL)
    elif connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(CONGESTION_CONTROL.encode()):
        _control(connected, UNPACED)


def acknowledge(connected: socket.socket) -> None:
    """Acknowledge what was received, now; the kernel is soon patient again (`tcp(7)`, TCP_QUICKACK)."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def missing_kernel_settings() -> Iterator[str]:
    """Tell what this kernel does not grant, and what to set."""
    if (granted := _granted_buffer()) < SEND_BUFFER:
        yield (
            f"send buffers are held to {granted // 1024} KiB, which halves what several pulls get over a long path: "
            f"sysctl -w net.core.wmem_max={SEND_BUFFER}"
        )
    if not _has_bbr():
        yield (
            f"{CONGESTION_CONTROL} cannot be used, so a lossy path carries a fraction of what it could: "
            'modprobe tcp_bbr; sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr"'
        )


def _control(connected: socket.socket, name: str) -> None:
    with suppress(OSError):  # not there, or not for us
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def _round_trip(connected: socket.socket) -> int:
    """Return the microseconds that the handshake took there and back."""
    (microseconds,) = _RTT.unpack(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))
    return int(microseconds)


def _granted_buffer() -> int:
    """Return the bytes granted when we ask for `SEND_BUFFER`; the kernel tells twice as much (`socket(7)`)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2


def _has_bbr() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode())
        except OSError:
            return False
    return True
