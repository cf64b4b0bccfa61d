"""Machines that never answer: two whole networks of them behind one namespace, without a process for each."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Final

from lab.processes import until

if TYPE_CHECKING:
    from pathlib import Path

    from lab.namespaces import Machine, Namespace

SILENT: Final = IPv4Network("10.78.0.0/16")
"""Addresses at which port 22 accepts connections and never sends anything."""
UNREACHABLE: Final = IPv4Network("10.79.0.0/16")
"""Addresses that lose every packet sent to them."""

_SILENT_SERVER = """
import asyncio

async def hold(reader, writer):
    await reader.read()
    writer.close()

async def main():
    server = await asyncio.start_server(hold, "0.0.0.0", 22, backlog=4096)
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def add_networks(router: Namespace, client: Machine, log: Path) -> None:
    """Give `client` routes to both networks through `router`, a namespace that does nothing else."""
    # ip-route(8): a network of type `local` is this machine's own; `blackhole` drops without an answer.
    router.run(["ip", "route", "add", "local", str(SILENT), "dev", "lo"], check=True)
    router.run(["ip", "route", "add", "blackhole", str(UNREACHABLE)], check=True)
    for network in (SILENT, UNREACHABLE):
        client.run(["ip", "route", "add", str(network), "via", router.ip], check=True)
    router.popen([sys.executable, "-c", _SILENT_SERVER], log=log)
    until(lambda: log.exists() and "listening" in log.read_text(), "the silent machines' port listens", timeout=10)


def addresses(network: IPv4Network, count: int) -> list[str]:
    """Return the first `count` addresses of a network."""
    return [str(IPv4Address(int(network.network_address) + number)) for number in range(1, count + 1)]
