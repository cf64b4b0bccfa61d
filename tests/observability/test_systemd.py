"""The messages that systemd receives, on a real datagram socket."""

import os
import socket
import threading
from pathlib import Path

import pytest

from tunnelmgr.observability.systemd import extend_timeout, notify, watchdog_interval


def received(listener: socket.socket) -> list[bytes]:
    """Return the datagrams that have arrived."""
    found = []
    listener.setblocking(False)
    while True:
        try:
            found.append(listener.recv(4096))
        except BlockingIOError:
            return found


def test_assignments_arrive_in_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several assignments are sent as the lines of one datagram (sd_notify(3))."""
    place = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place)
        notify("READY=1", "STATUS=2 of 3 agents up")

        assert received(manager) == [b"READY=1\nSTATUS=2 of 3 agents up"]


def test_a_stop_that_takes_long_asks_for_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is in microseconds from now."""
    place = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place)
        extend_timeout(1.5)

        assert received(manager) == [b"EXTEND_TIMEOUT_USEC=1500000"]


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abstract socket is written with @ in the environment and with NUL as its address."""
    name = f"tunnelmgr-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        notify("WATCHDOG=1")

        assert received(manager) == [b"WATCHDOG=1"]


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the manager's queue is full, the message is lost, and the event loop is not held."""
    place = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place)
        sent = threading.Thread(target=lambda: [notify(f"STATUS={number}") for number in range(1000)], daemon=True)
        sent.start()
        sent.join(10)
        is_waiting, messages = sent.is_alive(), received(manager)

    assert not is_waiting
    assert messages[0] == b"STATUS=0"
    assert len(messages) < 1000


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify", "@tunnelmgr-nobody"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Without systemd, `notify` does nothing."""
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)

    notify("READY=1")


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, None), ("", None), ("soon", None), ("-1", None), ("30000000", 15.0)]
)
def test_the_watchdog_interval_is_half_of_what_systemd_allows(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: float | None
) -> None:
    """WATCHDOG_USEC is in microseconds; an invalid value means no watchdog."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    if given is not None:
        monkeypatch.setenv("WATCHDOG_USEC", given)

    assert watchdog_interval() == seconds
