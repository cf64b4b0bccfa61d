"""Checks on the registry itself: whether it answers, and whether only this machine can reach it."""

import asyncio
import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.tunnel import Endpoint

CHECK_TIMEOUT = 5.0  # seconds
_LISTENING = "0A"
_START = "start the registry, or correct the forward's target"
_CORRECT = "correct the registry's configuration, or the forward's target"
_WITHOUT_AUTH = "remove `auth` from the registry's configuration: the gate decides what agents may do"
"""Debian's docker-registry comes with `auth` in /etc/docker/registry/config.yml."""


async def registry_error(target: Endpoint) -> str | None:
    """Return what is wrong with the registry's response to `GET /v2/` and what to do, None if nothing is wrong.

    OCI distribution spec, end-1.
    """
    request = f"GET /v2/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                writer.write(request.encode())
                status = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"{target} does not answer within {CHECK_TIMEOUT:g} s; {_START}"
    except OSError as failed:
        # The system's message: asyncio's own message has the address too.
        return f"{target}: {os.strerror(failed.errno) if failed.errno else failed}; {_START}"
    except ValueError:  # a line that is longer than asyncio's limit
        return f"{target} does not speak HTTP; {_CORRECT}"
    words = status.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):  # noqa: PLR2004 - version and status
        return f"{target} does not speak HTTP; {_CORRECT}"
    if words[1] == b"200":
        return None
    remedy = _WITHOUT_AUTH if words[1] == b"401" else _CORRECT
    return f"{target} answers {words[1].decode('latin-1')} to GET /v2/, not 200; {remedy}"


def listen_addresses(port: int, proc: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Return the local addresses of the listeners on `port`, empty if /proc cannot be read.

    In /proc/net/tcp, the listeners come before all other sockets (Linux, Documentation/networking/proc_net_tcp). The
    others, at least one for each tunnel, are not read.
    """
    found = set[str]()
    for name in ("tcp", "tcp6"):
        with suppress(OSError), (proc / name).open(encoding="ascii") as lines:
            next(lines, "")  # the column headings
            for line in lines:
                local, state = line.split()[1], line.split()[3]
                if state != _LISTENING:
                    break
                address, _, number = local.partition(":")
                if int(number, 16) == port:
                    found.add(str(_address(address)))
    return tuple(sorted(found))


def is_loopback_only(target: Endpoint) -> bool | None:
    """Return whether the registry listens on loopback addresses only, None if its listeners cannot be seen."""
    if not is_loopback(target.host):
        return False
    bound = listen_addresses(target.port)
    if not bound:
        return None
    return all(is_loopback(address) for address in bound)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Parse the kernel's form: words of 32 bits in the machine's byte order, assumed to be little-endian."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    if len(words) == 4:  # noqa: PLR2004 - IPv4
        return IPv4Address(words)
    address = IPv6Address(words)
    return address.ipv4_mapped or address
