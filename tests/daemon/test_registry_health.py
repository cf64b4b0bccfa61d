"""The health of the registries behind the gate, as `status` shows it."""

import socket
from dataclasses import dataclass

from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.daemon.registry_health import RegistryWatch


@dataclass(frozen=True)
class Configured:
    """A configuration with these forwards."""

    forwards: tuple[Forward, ...]


async def test_a_check_of_the_registry_records_its_time() -> None:
    """`status` can show how old the view of the registry is, whether it answers or not."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = Endpoint("127.0.0.1", unused.getsockname()[1])
    forward = Forward("registry", (Endpoint("127.0.0.1", 5000),), target, "registry")
    watch = RegistryWatch(Configured((forward,)), clock=lambda: 1_700_000_000.0)
    assert watch.health.checked_at is None

    await watch.check()

    assert not watch.health.reachable
    assert watch.health.checked_at == 1_700_000_000.0
