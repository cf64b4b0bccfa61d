"""Whether an address is loopback."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Return whether `host` is a literal loopback address; a name, `localhost` included, is not."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
