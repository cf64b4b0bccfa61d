"""A member that the database does not answer, while the other members reach it: what it keeps, and what they learn."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lab.postgres import Postgres
from tests.daemon.conftest import Site
from tests.daemon.database_proxy import DatabaseProxy, database_proxy
from tests.daemon.running_daemon import Process, daemon, fetch
from tests.daemon.test_cluster import another, both, database_ok, has_tunnel, is_draining
from tests.ssh.ssh_server import Sshd, generate, running_sshd
from tests.store.conftest import server, url
from tests.until import until_elsewhere

__all__ = ["server", "url"]

pytestmark = pytest.mark.acceptance


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[DatabaseProxy]:
    """Run a proxy between a member and the database; the path of its socket must be short."""
    with tempfile.TemporaryDirectory(prefix="proxy-") as folder:
        async with database_proxy(url, Path(folder) / "socket") as running:
            yield running


async def test_a_quarantine_that_a_member_could_not_store_reaches_the_new_holder(
    site: Site, url: str, proxy: DatabaseProxy
) -> None:
    """An isolated holder meets an impostor; the heir meets the true machine, and refuses it once it learns of that."""
    site.state = proxy.url
    impostor = Sshd(generate(), site.sshd.accepts)
    async with (
        running_sshd(impostor),
        daemon(site) as cut_off,
        daemon(replace(another(site, "registry-2"), state=url)) as other,
    ):
        await both(cut_off, other)
        await move_everything(other, cut_off)
        proxy.close()
        site.sshd = impostor
        site.write()
        cut_off.child.send_signal(signal.SIGHUP)

        await cut_off.phase("quarantined")
        await until_elsewhere(lambda: has_tunnel(other), "the heir is up", 30)
        assert await fetch(site) == b"HTTP/1.1 200 OK"
        proxy.open()

        agent = await other.phase("quarantined")
        assert (agent["holder"], agent["error"]) == ("registry-2", "host-key-mismatch")
        assert (await cut_off.phase("quarantined"))["holder"] == "registry-2"


async def move_everything(giver: Process, taker: Process) -> None:
    """Let one member hand over its agents and sources, and then be ready to take them again."""
    name = giver.client.status()["controller"]
    await asyncio.to_thread(taker.client.drain, name)
    await until_elsewhere(lambda: has_tunnel(taker) and not has_tunnel(giver), "it has handed over", 20)
    await until_elsewhere(lambda: sources_of(taker) == ["office"], "the source too", 20)
    await asyncio.to_thread(partial(taker.client.drain, name, on=False))
    await until_elsewhere(lambda: not is_draining(giver, name), "it is ready again", 20)


def sources_of(member: Process) -> list[str]:
    """Return the sources that a member polls, as it says."""
    cluster = member.client.status()["cluster"]
    return next(one["sources"] for one in cluster["members"] if one["name"] == cluster["member"])


async def test_a_database_restart_that_only_one_member_notices_moves_nothing(
    site: Site, url: str, proxy: DatabaseProxy, server: Postgres
) -> None:
    """A loss that is shorter than the lease changes neither holder nor tunnel."""
    assert server.url
    site.state = proxy.url
    async with daemon(site) as cut_off, daemon(replace(another(site, "registry-2"), state=url)) as other:
        first, _ = await both(cut_off, other)
        logins = site.sshd.logins_started

        proxy.close()
        await until_elsewhere(lambda: not database_ok(cut_off), "registry-1 is cut off", 20)
        proxy.open()
        await until_elsewhere(lambda: database_ok(cut_off), "it is back", 20)

        assert has_tunnel(first)
        assert site.sshd.logins_started == logins
