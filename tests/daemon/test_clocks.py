"""Certificates and seeds are judged by the wall clock, as it is set now."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncssh
import pytest

from tests.daemon.conftest import Site
from tests.ssh.ssh_server import Sshd, generate, running_sshd
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import DrainRequested, SeedAdded
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import World
from tunnelmgr.daemon.daemon import Daemon
from tunnelmgr.daemon.prepared import prepare
from tunnelmgr.ssh.key_files import load_key
from tunnelmgr.store.connect import open_store

HOUR, YEAR = 3600, 365 * 86400


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.ahead


@asynccontextmanager
async def running(site: Site, wall: Wall) -> AsyncIterator[Daemon]:
    """Run a daemon in this process; at the end it drains."""
    prepared = prepare(site.write())
    store = open_store(prepared.config.controller.state, "test")
    async with asyncio.TaskGroup() as tasks:
        daemon = Daemon(site.file, prepared, store, tasks, wall=wall)
        task = tasks.create_task(daemon.run(), name="daemon")
        try:
            yield daemon
        finally:
            daemon.controller.report(DrainRequested())
            await task
    store.close()


async def test_a_certificate_is_valid_by_the_wall_clock_as_it_is_set(site: Site) -> None:
    """A controller that started with a clock a year behind accepts the certificate once the clock is set."""
    host, authority, wall = generate(), generate(), Wall()
    begins = int(time.time()) + YEAR
    certificate = authority.generate_host_certificate(
        host, "test", principals=["static:builder-1"], valid_after=begins, valid_before=begins + HOUR
    )
    (site.folder / "ca.pub").write_bytes(authority.export_public_key())
    site.more = f'[[authority]]\nname = "images"\nfile = "{site.folder}/ca.pub"\nmax_validity = "24h"\n'
    site.trust = "authority"
    shown = Sshd((host, certificate), load_key(site.folder / "id_ed25519"))  # type: ignore[arg-type]  # asyncssh takes the pair

    async with running_sshd(shown) as site.sshd, running(site, wall) as daemon:

        def status(world: World) -> tuple[Phase, str]:
            known = world.tunnels.get(AgentId("static:builder-1"))
            return (known.phase, known.message) if known else (Phase.DOWN, "")

        await until(lambda: "is not valid before" in status(daemon.controller.world)[1])
        wall.ahead = YEAR + 60
        await until(lambda: status(daemon.controller.world)[0] is Phase.UP)


@pytest.mark.parametrize(("ahead", "known"), [(0, True), (2 * HOUR, False)])
async def test_a_seed_expires_by_the_wall_clock(site: Site, ahead: float, *, known: bool) -> None:
    """A seed expires at the time that `provision` printed."""
    wall = Wall()
    key = generate()
    async with running(site, wall) as daemon:
        daemon.controller.report(SeedAdded(Seed("one", public(key), expires=time.time() + HOUR)))
        await until(lambda: "one" in daemon.controller.world.seeds)

        wall.ahead = ahead
        found = daemon.searches.inputs.seeds.seed("one")

    assert (found is not None) == known


def public(key: asyncssh.SSHKey) -> str:
    """Return the public half as `type base64`."""
    return key.export_public_key().decode().strip()
