"""`controller.state`: a SQLite file, or a PostgreSQL database that is verified unless it is on this machine."""

import os
import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from tunnelmgr.core.loopback import is_loopback


def state_url(value: object) -> str:
    """Return a state URL, or raise ValueError."""
    if isinstance(value, str) and re.fullmatch(r"sqlite:////[^\0]+", value):
        return value
    if isinstance(value, str) and re.match(r"postgres(ql)?://", value):
        return _postgres_url(value)
    raise ValueError('write "sqlite:////absolute/path" or "postgresql://user@host/database"')


def _postgres_url(url: str) -> str:
    """Check a PostgreSQL URL: it has no password, and it verifies the server unless that is on this machine."""
    place = urlsplit(url)
    known = dict(parse_qsl(place.query))
    if "sslpassword" in known:
        raise ValueError("must not hold a password; use an sslkey that has none and that only the daemon can read")
    if place.password is not None or "password" in known:
        raise ValueError("must not hold a password; put it into the file that controller.password_file names")
    named = known.get("host") or place.netloc.rpartition("@")[2] or os.environ.get("PGHOST", "")
    hosts = [host for host in f"{named},{known.get('hostaddr', '')}".split(",") if host]
    if all(_is_local(host) for host in hosts):
        return url
    mode = known.get("sslmode")
    if mode not in {None, "verify-full"}:
        raise ValueError(f"sslmode={mode} does not verify the server; use sslmode=verify-full, the default here")
    verified = {"sslrootcert": "system", **known, "sslmode": "verify-full"}
    return f"{url.partition('?')[0]}?{urlencode(verified)}"  # urlunsplit would drop the slashes of an empty host


def _is_local(host: str) -> bool:
    """Return whether a host of a PostgreSQL URL is a socket's folder or a loopback address."""
    name = host.rpartition(":")[0] if re.fullmatch(r"\[.*\]:\d+|[^:]+:\d+", host) else host
    return unquote(name).startswith("/") or name == "localhost" or is_loopback(name.strip("[]"))
