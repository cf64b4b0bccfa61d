"""The health of the registries behind the gate, as `status` shows it."""

import socket

from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.daemon.registry_health import RegistryWatch


async def test_a_check_of_the_registry_records_its_time() -> None:
    """`status` can show how old the view of the registry is, whether it answers or not."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = Endpoint("127.0.0.1", unused.getsockname()[1])
    forward = Forward("registry", (Endpoint("127.0.0.1", 5000),), target, "registry")
    watch = RegistryWatch(lambda: (forward,), clock=lambda: 1_700_000_000.0)
    assert watch.facts.checked_at is None

    await watch.look()

    assert not watch.facts.reachable
    assert watch.facts.checked_at == 1_700_000_000.0
