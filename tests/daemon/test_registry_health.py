"""The health of the registries behind the gate, as `status` shows it."""

import asyncio
import socket
from dataclasses import dataclass, replace

from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.daemon.registry_health import RegistryWatch


@dataclass(frozen=True)
class Configured:
    """A configuration with these forwards."""

    forwards: tuple[Forward, ...]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a registry does."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def test_a_registry_for_pushes_that_does_not_answer_is_reported() -> None:
    """A replica that answers is not enough if the registry that takes its pushes does not."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        away = Endpoint("127.0.0.1", unused.getsockname()[1])
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        replica = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        forward = Forward("registry", (Endpoint("127.0.0.1", 5000),), replica, "registry")
        alone = RegistryWatch(Configured((forward,)))
        both = RegistryWatch(Configured((replace(forward, push_target=away),)))

        await alone.check()
        await both.check()

    assert (alone.health.reachable, alone.health.error) == (True, None)
    assert not both.health.reachable
    assert str(both.health.error).startswith(f"{away}: Connection refused")


async def test_a_pull_through_cache_that_does_not_answer_is_reported() -> None:
    """A forward to a cache needs its registry as any other forward does."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        away = Endpoint("127.0.0.1", unused.getsockname()[1])
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        target = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        forward = Forward("registry", (Endpoint("127.0.0.1", 5000),), target)
        mirror = Forward("mirror", (Endpoint("127.0.0.1", 5001),), away, upstream="proxy")
        watch = RegistryWatch(Configured((forward, mirror)))

        await watch.check()

    assert str(watch.health.error).startswith(f"{away}: Connection refused")


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
