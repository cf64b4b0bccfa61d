"""Socket options for connections to agents, and the report of what the kernel does not grant."""

import socket

import pytest

from tunnelmgr.dataplane import socket_options
from tunnelmgr.dataplane.socket_options import CONGESTION_CONTROL, SEND_BUFFER, missing_kernel_settings, tune


def congestion_control(connected: socket.socket) -> bytes:
    """Return what the socket uses."""
    return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the agent be 20 ms away."""
    monkeypatch.setattr(socket_options, "_round_trip", lambda _: 20_000)


def test_a_tuned_socket_has_what_the_kernel_grants() -> None:
    """Every option that is not reported as missing is set on a tuned socket."""
    lacking = " ".join(missing_kernel_settings())

    with socket.socket() as tuned:
        tune(tuned)

        assert tuned.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        granted = tuned.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 >= SEND_BUFFER
        assert granted == ("wmem_max" not in lacking)
        assert (congestion_control(tuned) == CONGESTION_CONTROL.encode()) == ("tcp_bbr" not in lacking)


def test_a_buffer_that_is_granted_in_part_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller buffer is not set, because it would stop the kernel's automatic growth."""
    monkeypatch.setattr(socket_options, "_granted_buffer", lambda: 212992)

    with socket.socket() as tuned, socket.socket() as other:
        tune(tuned)

        assert tuned.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == other.getsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF
        )


def test_a_missing_congestion_control_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BBR the socket keeps its congestion control."""
    monkeypatch.setattr(socket_options, "CONGESTION_CONTROL", "nosuch")

    with socket.socket() as tuned:
        before = congestion_control(tuned)
        tune(tuned)

        assert congestion_control(tuned) == before


def test_a_near_agent_keeps_the_kernels_congestion_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a short path, a congestion control without pacing is not changed."""
    monkeypatch.setattr(socket_options, "_round_trip", lambda _: 100)

    with socket.socket() as tuned:
        tuned.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        tune(tuned)

        assert congestion_control(tuned) == b"reno"


def test_a_near_agent_is_not_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a short path, BBR as the kernel's default is replaced, because pacing costs CPU."""
    monkeypatch.setattr(socket_options, "_round_trip", lambda _: 100)
    monkeypatch.setattr(socket_options, "CONGESTION_CONTROL", "cubic")
    monkeypatch.setattr(socket_options, "UNPACED_CONGESTION_CONTROL", "reno")

    with socket.socket() as tuned:
        tuned.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        tune(tuned)

        assert congestion_control(tuned) == b"reno"


def test_the_round_trip_is_what_the_kernel_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round trip on loopback is more than nothing and less than a second."""
    monkeypatch.undo()

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
        socket.socket() as alone,
    ):
        assert 0 < socket_options._round_trip(connected) < 1_000_000
        assert socket_options._round_trip(alone) == 0


def test_each_missing_setting_has_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each report contains the complete command to run."""
    monkeypatch.setattr(socket_options, "_granted_buffer", lambda: 212992)
    monkeypatch.setattr(socket_options, "CONGESTION_CONTROL", "nosuch")

    buffer, congestion = missing_kernel_settings()
    assert "208 KiB" in buffer
    assert f"sysctl -w net.core.wmem_max={SEND_BUFFER}" in buffer
    assert "modprobe tcp_bbr" in congestion
