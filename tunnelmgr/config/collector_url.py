"""The URLs of collectors, to which the daemon sends copies of the audit log, and traces."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tunnelmgr.core.loopback import is_loopback

HTTP_PORTS: Final[Mapping[str, int]] = {"https": 443, "http": 80}
"""The schemes of HTTP and their ports; without TLS, only to a collector on this machine."""


def collector_url(url: str, schemes: Mapping[str, int], example: str) -> SplitResult:
    """Return the parts of a collector's URL; raises ValueError, with an example, if it is not one of these schemes."""
    try:
        place = urlsplit(url)
        host, _ = place.hostname, place.port
    except ValueError as invalid:
        raise ValueError(f"not a URL: {invalid}") from invalid
    if place.scheme not in schemes or not host or not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError(f"write {example}")
    if place.username is not None or place.password is not None:
        raise ValueError("must not hold a password; put a token into the file that token_file names")
    if place.scheme == "http" and not is_loopback(host):
        raise ValueError(f"{host} is not a loopback address; write https, so that nobody can read or change the data")
    return place
