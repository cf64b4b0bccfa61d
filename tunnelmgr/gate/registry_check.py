"""How the registry itself does: whether it answers, and whether anybody but this machine can reach it."""

import asyncio
import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from tunnelmgr.core.tunnel import Endpoint

PATIENCE = 5.0
_LISTENING = "0A"
_START = "start the registry, or correct the forward's target"
_CORRECT = "correct the registry's configuration, or the forward's target"
_WITHOUT_AUTH = "remove `auth` from the registry's configuration: the gate decides what agents may do"
"""Debian's docker-registry comes with `auth` in /etc/docker/registry/config.yml."""


async def registry_error(target: Endpoint) -> str | None:
    """Return what is wrong with the registry's answer to `GET /v2/` and what to do, None if nothing is wrong.

    OCI distribution spec, end-1.
    """
    request = f"GET /v2/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                writer.write(request.encode())
                status = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"{target} does not answer within {PATIENCE:g} s; {_START}"
    except OSError as failed:
        # The system's own words: asyncio puts the address there once more.
        return f"{target}: {os.strerror(failed.errno) if failed.errno else failed}; {_START}"
    except ValueError:  # a line without an end
        return f"{target} does not speak HTTP; {_CORRECT}"
    words = status.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):  # noqa: PLR2004 - version and status
        return f"{target} does not speak HTTP; {_CORRECT}"
    if words[1] == b"200":
        return None
    remedy = _WITHOUT_AUTH if words[1] == b"401" else _CORRECT
    return f"{target} answers {words[1].decode('latin-1')} to GET /v2/, not 200; {remedy}"


def listen_addresses(port: int, proc: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Return the local addresses on which something listens on `port`, empty where that is unreadable.

    From /proc/net/tcp, which has those that listen before all others (Linux, Documentation/networking/proc_net_tcp).
    The others, one for each tunnel and more, are not read.
    """
    found = set[str]()
    for name in ("tcp", "tcp6"):
        with suppress(OSError), (proc / name).open(encoding="ascii") as lines:
            next(lines, "")  # the heads
            for line in lines:
                local, state = line.split()[1], line.split()[3]
                if state != _LISTENING:
                    break
                address, _, number = local.partition(":")
                if int(number, 16) == port:
                    found.add(str(_address(address)))
    return tuple(sorted(found))


def is_loopback_only(target: Endpoint) -> bool | None:
    """Tell whether the registry's port is bound on loopback only; None where that cannot be seen from here."""
    if not ip_address(target.host).is_loopback:
        return False
    bound = listen_addresses(target.port)
    if not bound:
        return None
    return all(ip_address(address).is_loopback for address in bound)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read the kernel's form: words of 32 bits in the machine's byte order, which is little-endian here."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    if len(words) == 4:  # noqa: PLR2004 - IPv4
        return IPv4Address(words)
    address = IPv6Address(words)
    return address.ipv4_mapped or address
