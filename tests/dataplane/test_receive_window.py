"""A channel's receive window: it reopens as data is read, and grows while it is used."""

from hypothesis import given
from hypothesis import strategies as st

from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES, ReceiveWindow


def test_the_window_reopens_after_half_of_it_was_read() -> None:
    """No WINDOW_ADJUST is due before half of the window was read."""
    window = ReceiveWindow()
    assert window.read(INITIAL_WINDOW_BYTES // 2 - 1) == 0
    assert window.read(1) > 0


def test_the_window_doubles_up_to_the_maximum() -> None:
    """The window doubles each time it reopens, up to `MAX_WINDOW_BYTES`."""
    window, sizes = ReceiveWindow(), []
    for _ in range(5):
        window.read(window.size // 2)
        sizes.append(window.size)

    assert sizes == [
        2 * INITIAL_WINDOW_BYTES,
        4 * INITIAL_WINDOW_BYTES,
        MAX_WINDOW_BYTES,
        MAX_WINDOW_BYTES,
        MAX_WINDOW_BYTES,
    ]


@given(reads=st.lists(st.integers(1, 64 * 1024), max_size=300))
def test_unread_bytes_never_exceed_the_window(reads: list[int]) -> None:
    """However data is sent and read, unread bytes never exceed the window."""
    window, may_send, unread = ReceiveWindow(), INITIAL_WINDOW_BYTES, 0
    for octets in reads:
        sent, may_send = may_send, 0  # an agent that sends all that it may, at once
        unread += sent
        assert unread <= window.size
        taken = min(octets, unread)
        unread -= taken
        may_send += window.read(taken)
    assert unread + may_send <= window.size
