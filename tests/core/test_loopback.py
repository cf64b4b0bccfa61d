"""Whether an address is loopback."""

import pytest

from tunnelmgr.core.loopback import is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 - an address to judge
        ("::", False),
        ("192.0.2.1", False),
        ("localhost", False),
        ("127.0.0.1:5000", False),
        ("", False),
    ],
)
def test_only_a_literal_loopback_address_is_loopback(host: str, loopback: bool) -> None:
    """A name may resolve to anything, so it does not count; a caller that accepts `localhost` does so itself."""
    assert is_loopback(host) is loopback
