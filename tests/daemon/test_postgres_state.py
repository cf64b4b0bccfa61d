"""The daemon with its state in PostgreSQL, between a real server and an agent."""

import asyncio
import signal
from dataclasses import replace
from typing import cast

import pytest

from lab.postgres import Postgres
from tests.daemon.conftest import Site
from tests.daemon.running_daemon import Process, daemon, fetch
from tests.ssh.ssh_server import Sshd, generate, running_sshd
from tests.store.conftest import server, url
from tests.until import until_elsewhere

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


async def test_a_second_daemon_of_the_same_name_refuses(site: Site, url: str) -> None:
    """The second daemon ends with an error that says what to do, and the first one continues."""
    site.state = url
    async with daemon(site) as first:
        await first.phase("up")
        async with daemon(another(site, "registry-1")) as second:
            assert await second.end() == 1
            assert b"a controller with the name 'registry-1' is running" in second.output
        assert (await first.phase("up"))["error"] is None


def another(site: Site, name: str) -> Site:
    """Return the site of another controller with the same state, key and agents."""
    folder = site.folder / f"another-{name}"
    folder.mkdir()
    (folder / "id_ed25519").write_bytes((site.folder / "id_ed25519").read_bytes())
    (folder / "id_ed25519").chmod(0o600)
    return replace(site, folder=folder, name=name)


async def holder(*members: Process) -> Process:
    """Return the member that has the tunnel, once exactly one has."""

    def only_holder() -> Process | None:
        found = [member for member in members if has_tunnel(member)]
        return found[0] if len(found) == 1 else None

    return cast("Process", await until_elsewhere(only_holder, "one member holds the tunnel", 20))


def has_tunnel(member: Process) -> bool:
    """Return whether a member says that it holds the tunnel."""
    agents = member.agents()
    return any(agent["phase"] == "up" and agent["probe_ms"] is not None for agent in agents.values())


def living_members(member: Process) -> int:
    """Return how many members are alive, as one of them sees it."""
    return sum(one["alive"] for one in member.client.status()["cluster"]["members"])


async def test_one_of_two_members_has_the_tunnel_and_hands_it_over_at_its_end(site: Site, url: str) -> None:
    """A stop hands the agent over: the other member listens before the first one ends, and clients are served."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first = await holder(one, two)
        second = two if first is one else one
        await until_elsewhere(lambda: living_members(first) == 2, "both are members", 20)

        first.child.send_signal(signal.SIGTERM)
        assert await first.end() == 0

        assert await asyncio.to_thread(has_tunnel, second)
        assert await fetch(site) == b"HTTP/1.1 200 OK"
        assert b"Traceback" not in first.output + second.output


async def test_a_killed_members_agent_is_taken_over(site: Site, url: str) -> None:
    """After kill -9 of the holder, the other member notices that its session has ended, and dials."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first = await holder(one, two)
        second = two if first is one else one

        first.child.kill()

        await second.phase("up")
        assert await holder(second) is second
        assert await fetch(site) == b"HTTP/1.1 200 OK"
