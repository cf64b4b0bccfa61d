"""Machines that never answer: whole networks of them behind one namespace, at no cost each."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Final

from lab.processes import until

if TYPE_CHECKING:
    from pathlib import Path

    from lab.namespaces import Machine, Namespace

SILENT: Final = IPv4Network("10.78.0.0/16")
"""Addresses at which port 22 accepts connections and sends nothing, ever."""
UNREACHABLE: Final = IPv4Network("10.79.0.0/16")
"""Addresses from which nothing comes back: every packet to them is lost."""

_HOLD = """
import asyncio

async def hold(reader, writer):
    await reader.read()
    writer.close()

async def main():
    server = await asyncio.start_server(hold, "0.0.0.0", 22, backlog=4096)
    print("holds", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def put_behind(gate: Namespace, visitor: Machine, log: Path) -> None:
    """Have `visitor` find both networks behind `gate`, a namespace that does nothing else."""
    # ip-route(8): a network of type `local` is this machine's own, each address of it; `blackhole` tells nobody.
    gate.run(["ip", "route", "add", "local", str(SILENT), "dev", "lo"], check=True)
    gate.run(["ip", "route", "add", "blackhole", str(UNREACHABLE)], check=True)
    for network in (SILENT, UNREACHABLE):
        visitor.run(["ip", "route", "add", str(network), "via", gate.ip], check=True)
    gate.popen([sys.executable, "-c", _HOLD], log=log)
    until(lambda: log.exists() and "holds" in log.read_text(), "silent machines accept", timeout=10)


def addresses(network: IPv4Network, count: int) -> list[str]:
    """Return so many addresses of a network."""
    return [str(IPv4Address(int(network.network_address) + number)) for number in range(1, count + 1)]
