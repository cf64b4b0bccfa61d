"""Several daemons on one database, between a real PostgreSQL server and an agent."""

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
from tests.until import until, until_elsewhere

__all__ = ["server", "url"]

pytestmark = pytest.mark.acceptance


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
    """Return how many members are alive, as one of them sees it; none if it does not answer yet."""
    if not member.answers():
        return 0
    return sum(one["alive"] for one in member.client.status()["cluster"]["members"])


async def both(one: Process, two: Process) -> tuple[Process, Process]:
    """Return the holder and the other one, once both are members."""
    first = await holder(one, two)
    for member in (one, two):
        await until_elsewhere(lambda member=member: living_members(member) == 2, "it knows both members", 20)
    return first, two if first is one else one


async def test_a_second_daemon_of_the_same_name_refuses(site: Site, url: str) -> None:
    """The second daemon ends with an error that says what to do, and the first one continues."""
    site.state = url
    async with daemon(site) as first:
        await first.phase("up")
        async with daemon(another(site, "registry-1")) as second:
            assert await second.end() == 1
            assert b"a controller with the name 'registry-1' is running" in second.output
        assert (await first.phase("up"))["error"] is None


async def test_one_of_two_members_has_the_tunnel_and_hands_it_over_at_its_end(site: Site, url: str) -> None:
    """A stop hands the agent over: the other member listens before the first one ends, and clients are served."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)

        first.child.send_signal(signal.SIGTERM)
        assert await first.end() == 0

        assert await asyncio.to_thread(has_tunnel, second)
        assert await fetch(site) == b"HTTP/1.1 200 OK"
        assert b"Traceback" not in first.output + second.output


async def test_a_member_that_stops_hands_over_to_one_that_has_just_joined(site: Site, url: str) -> None:
    """Two members that are restarted one right after the other leave no agent without a listener."""
    site.state = url
    async with daemon(site) as first:
        await holder(first)
        async with daemon(another(site, "registry-2")) as second:
            await until_elsewhere(lambda: second.answers() and living_members(second) == 2, "it has joined", 20)

            first.child.send_signal(signal.SIGTERM)
            assert await first.end() == 0

            assert await fetch(site) == b"HTTP/1.1 200 OK"


async def test_a_killed_members_agent_is_taken_over(site: Site, url: str) -> None:
    """After kill -9 of the holder, the other member notices that its session has ended, and dials."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)

        first.child.kill()

        await second.phase("up")
        assert await holder(second) is second
        assert await fetch(site) == b"HTTP/1.1 200 OK"


async def test_every_member_shows_the_agent_with_its_holder(site: Site, url: str) -> None:
    """`list` on the other member has the phase and the holder; `status` has the members."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)
        name = first.client.status()["controller"]

        seen = await second.phase("up")

        assert (seen["holder"], seen["probe_ms"]) == (name, None)
        cluster = second.client.status()["cluster"]
        assert {member["name"]: member["agents"] for member in cluster["members"]}[name] == 1
        assert sorted(source for member in cluster["members"] for source in member["sources"]) == ["office"]
        assert all(member["same_rules"] for member in cluster["members"])


async def test_an_agent_moves_by_drain_and_stays_reachable(site: Site, url: str) -> None:
    """`drain` at any member moves the agent; the drained member takes it again only after `--undo` and a drain back."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)
        name = first.client.status()["controller"]

        second.client.drain(name)
        await until_elsewhere(lambda: has_tunnel(second) and not has_tunnel(first), "the other one has it", 20)
        assert await fetch(site) == b"HTTP/1.1 200 OK"

        second.client.drain(name, on=False)
        await until_elsewhere(lambda: not is_draining(second, name), "the drain is undone", 20)
        second.client.drain(second.client.status()["controller"])
        await until_elsewhere(lambda: has_tunnel(first) and not has_tunnel(second), "it has moved back", 20)
        assert await fetch(site) == b"HTTP/1.1 200 OK"


def is_draining(member: Process, name: str) -> bool:
    """Return whether a member sees another one draining."""
    return any(one["draining"] for one in member.client.status()["cluster"]["members"] if one["name"] == name)


async def test_a_release_at_another_member_reaches_the_holder(site: Site, url: str) -> None:
    """A quarantine made by the holder is seen and ended at the other member."""
    site.state = url
    async with daemon(site) as one:
        await one.phase("up")
        one.child.kill()
        await one.end()
    stranger = Sshd(generate(), site.sshd.accepts)
    async with running_sshd(stranger):
        site.sshd = stranger
        async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
            for member in (one, two):
                await member.phase("quarantined")
            await until_elsewhere(lambda: holder_of_agent(one) == holder_of_agent(two) is not None, "both know it", 20)
            other = two if holder_of_agent(one) == "registry-1" else one

            other.client.release("builder-1", "reinstalled")

            await other.phase("up")
            assert "reinstalled" in str(other.client.agent("builder-1")["history"])


async def test_a_restart_of_the_database_moves_nothing(site: Site, url: str, server: Postgres) -> None:
    """All members come back to it, the holder keeps its agent, and nobody dials again."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)
        logins = site.sshd.logins_started
        server.stop()
        try:
            await until_elsewhere(lambda: not database_ok(second), "the database is missed", 20)
            assert await fetch(site) == b"HTTP/1.1 200 OK"
        finally:
            server.start()
        await until_elsewhere(lambda: database_ok(first) and database_ok(second), "it answers again", 20)

        await asyncio.to_thread(second.client.drain, second.client.status()["controller"])
        await until_elsewhere(lambda: is_draining(first, second.client.status()["controller"]), "it works again", 20)
        assert await holder(one, two) is first
        assert site.sshd.logins_started == logins


async def test_a_member_without_the_database_ends_its_tunnels_if_told_to(
    site: Site, url: str, server: Postgres
) -> None:
    """After `isolation_limit` seconds without the database it stops listening; it dials again once that answers."""
    site.state = url
    site.controller.append('isolation_limit = "2s"')
    async with daemon(site) as member:
        await member.phase("up")
        server.stop()
        try:
            await until_elsewhere(lambda: not has_tunnel(member), "the tunnel ends", 20)
            await until(lambda: site.sshd.cancelled == [site.listen])
        finally:
            server.start()
        await until_elsewhere(lambda: has_tunnel(member), "the tunnel is back", 20)


def database_ok(member: Process) -> bool:
    """Return whether a member says that the database answers."""
    return bool(member.client.status()["cluster"]["database"]["ok"])


def holder_of_agent(member: Process) -> str | None:
    """Return which member holds the agent, as one of them sees it; None while it does not know the agent."""
    holder = member.agents().get("builder-1", {}).get("holder")
    return None if holder is None else str(holder)


async def test_a_frozen_member_that_wakes_up_lets_go(site: Site, url: str) -> None:
    """The agent's sshd keeps the frozen member's listener: the heir has the port once the member wakes up."""
    site.state = url
    async with daemon(site) as one, daemon(another(site, "registry-2")) as two:
        first, second = await both(one, two)
        heir = second.client.status()["controller"]
        first.child.send_signal(signal.SIGSTOP)
        try:
            await until_elsewhere(lambda: holder_of_agent(second) == heir, "it is claimed", 60)
            assert not await asyncio.to_thread(has_tunnel, second)
        finally:
            first.child.send_signal(signal.SIGCONT)

        await until_elsewhere(lambda: has_tunnel(second) and not has_tunnel(first), "the heir has it", 60)
        assert await fetch(site) == b"HTTP/1.1 200 OK"
