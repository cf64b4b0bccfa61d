"""The daemon with its state in PostgreSQL, between a real server and an agent."""

import pytest

from lab.postgres import Postgres
from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon
from tests.ssh.ssh_server import Sshd, generate, running_sshd
from tests.store.conftest import server, url

__all__ = ["server", "url"]

pytestmark = pytest.mark.acceptance


async def test_a_first_seen_key_outlives_a_kill_in_the_database(site: Site, url: str) -> None:
    """The first key seen is remembered in the database: after kill -9, another key at that address is a mismatch."""
    site.state = url
    async with daemon(site) as process:
        await process.phase("up")
        process.child.kill()
        await process.end()

    stranger = Sshd(generate(), site.sshd.accepts)
    async with running_sshd(stranger):
        site.sshd = stranger
        async with daemon(site) as process:
            agent = await process.phase("quarantined")
            assert agent["error"] == "host-key-mismatch"

    assert stranger.logins_started == 0


async def test_a_database_that_goes_away_costs_no_tunnel(site: Site, url: str, server: Postgres) -> None:
    """While the database is down the tunnel stays up and `status` shows the fault; it heals with the database."""
    site.state = url
    async with daemon(site) as process:
        await process.phase("up")
        server.stop()
        try:
            await process.ask(process.client.seed, generate().export_public_key().decode().strip(), 600)
            await process.until_state(ok=False)
            assert (await process.phase("up"))["error"] is None
        finally:
            server.start()
        await process.until_state(ok=True)
