"""Socket options for connections to agents, so that long or lossy paths reach their full throughput.

- A send buffer of delay times bandwidth: with the kernel's default, four streams at 20 ms get half. It is set only if
  all of it is granted, because a buffer that was set no longer grows by itself.
- BBR (`tcp(7)`, TCP_CONGESTION): unlike CUBIC, it does not take every lost packet for congestion. Its pacing costs CPU,
  a fifth of a tunnel's, so it is set only if the round trip is long enough for losses to matter, and replaced if the
  path is short and BBR is the kernel's default.
- Immediate ACKs, as long as Nagle's algorithm makes the agent's sshd hold back small packets (RFC 9293, section 3.7.4):
  with the kernel's delayed ACKs, each of its answers to a new tunnel waits for 40 ms.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

SEND_BUFFER: Final = 4 * 1024 * 1024
"""Bytes in flight to one agent that the kernel may hold."""
CONGESTION_CONTROL: Final = "bbr"
UNPACED_CONGESTION_CONTROL: Final = "cubic"
NEAR_RTT: Final = 1000
"""Microseconds of round trip below which a lost packet is retransmitted before it matters."""
_RTT = struct.Struct("=68xI")
"""Where `struct tcp_info` has `tcpi_rtt` (linux/tcp.h)."""


def tune(connected: socket.socket) -> None:
    """Set the options; what the kernel does not grant stays unchanged."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _granted_buffer() >= SEND_BUFFER:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if _round_trip(connected) >= NEAR_RTT:
        _set_congestion_control(connected, CONGESTION_CONTROL)
    elif connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(CONGESTION_CONTROL.encode()):
        _set_congestion_control(connected, UNPACED_CONGESTION_CONTROL)


def acknowledge(connected: socket.socket) -> None:
    """Acknowledge now what was received; the kernel soon delays ACKs again (`tcp(7)`, TCP_QUICKACK)."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@dataclass(frozen=True, slots=True)
class NetworkPath:
    """A connection as the kernel sees it: round trip in seconds, send buffer in bytes, and congestion control."""

    round_trip: float
    send_buffer: int
    congestion_control: str


def network_path(connected: socket.socket) -> NetworkPath:
    """Return the facts of a connection; raises OSError if it is gone."""
    return NetworkPath(
        _round_trip(connected) / 1e6,
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2,
        connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode(),
    )


def missing_kernel_settings() -> Iterator[str]:
    """Yield what this kernel does not grant, its effect, and the command that changes it."""
    if (granted := _granted_buffer()) < SEND_BUFFER:
        yield (
            f"the kernel limits send buffers to {granted // 1024} KiB, which halves the throughput of pulls on "
            f"a long path; to raise it: sysctl -w net.core.wmem_max={SEND_BUFFER}"
        )
    if not _has_bbr():
        yield (
            f"congestion control {CONGESTION_CONTROL} is not available, which slows down lossy paths; to enable it: "
            'modprobe tcp_bbr; sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr"'
        )


def _set_congestion_control(connected: socket.socket, name: str) -> None:
    with suppress(OSError):  # not available, or not permitted
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def _round_trip(connected: socket.socket) -> int:
    """Return the smoothed round trip in microseconds; at first, that of the TCP handshake."""
    (microseconds,) = _RTT.unpack(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))
    return int(microseconds)


def _granted_buffer() -> int:
    """Return how many of `SEND_BUFFER` bytes are granted; the kernel reports the double (`socket(7)`)."""
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
