"""How far an agent's window is open: by what was read, and wider while it is used."""

from hypothesis import given
from hypothesis import strategies as st

from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES, ReceiveWindow


def test_nothing_is_given_before_half_of_it_is_read() -> None:
    """So that a message a packet is not needed."""
    window = ReceiveWindow()
    assert window.read(INITIAL_WINDOW_BYTES // 2 - 1) == 0
    assert window.read(1) > 0


def test_it_doubles_while_it_is_used_and_no_further_than_the_most() -> None:
    """A channel on which nobody reads stays small, one that carries a layer becomes large within a mebibyte."""
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
def test_what_may_be_unread_never_exceeds_its_size(reads: list[int]) -> None:
    """Whatever an agent sends, and however it is read."""
    window, may_send, unread = ReceiveWindow(), INITIAL_WINDOW_BYTES, 0
    for octets in reads:
        sent, may_send = may_send, 0  # an agent that sends all that it may, at once
        unread += sent
        assert unread <= window.size
        taken = min(octets, unread)
        unread -= taken
        may_send += window.read(taken)
    assert unread + may_send <= window.size
