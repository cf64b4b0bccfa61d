"""Who may see the status page, and what a browser may do with it.

A page of another site can have its own name resolve to 127.0.0.1 and then read what answers there as its own (DNS
rebinding). Its requests carry that name in the Host header, so on the TCP address only literal addresses, `localhost`
and the names of `controller.metrics_names` are answered.
"""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page has neither inline scripts nor inline styles, and asks no other host for anything."""
PAGE_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_own_host(header: str | None, names: Collection[str]) -> bool:
    """Return whether a Host header names this machine by an address, `localhost`, or one of the names."""
    if not header:
        return False
    host = _without_port(header).lower()
    if host == "localhost" or host in names:
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _without_port(header: str) -> str:
    """Return the host of `host`, `host:port`, `[address]` or `[address]:port` (RFC 9110, section 7.2)."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
