"""The whole daemon as a process, between a stand-in for an agent's sshd and a registry."""

import asyncio
import signal
import socket as sockets
from contextlib import suppress
from pathlib import Path

from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon, fetch
from tests.dataplane.renamed_asyncssh import renamed
from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd


async def test_it_comes_up_serves_the_agent_and_drains_on_sigterm(site: Site) -> None:
    """An agent of the configuration can pull, and after a drain nothing listens any more."""
    async with daemon(site) as process:
        agent = await process.phase("up")
        assert agent["trust"] == "tofu"
        assert agent["probe_ms"] > 0
        assert agent["forwards"][0]["held"] == [str(site.listen)]
        assert await fetch(site) == b"HTTP/1.1 200 OK"

        status = await process.ask(process.client.status)
        assert status["registry"]["reachable"]
        assert (status["agents"], status["up"], status["registry"]["loopback_only"]) == (1, 1, True)

        process.child.send_signal(signal.SIGTERM)
        assert await process.end() == 0

    assert not site.socket.exists()
    assert site.sshd.cancelled == [site.listen]
    assert b"Traceback" not in process.output


async def test_a_stop_lets_a_request_in_progress_end_while_others_are_served(site: Site) -> None:
    """After SIGTERM, new clients are served until the request that was in progress has ended; then nobody listens."""
    async with daemon(site) as process:
        before = (await process.phase("up"))["bytes_from_agent"]
        reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        start = b"GET /v2/ HTTP/1.1\r\nHost: localhost:5000\r\nPadding: " + 4000 * b"x" + b"\r\n"
        writer.write(start)
        await process.until_received(before + len(start))

        process.child.send_signal(signal.SIGTERM)
        await process.until_draining()
        meanwhile = [await fetch(site) for _ in range(3)]
        assert site.sshd.cancelled == []
        writer.write(b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await process.end() == 0

    assert meanwhile == [b"HTTP/1.1 200 OK"] * 3
    assert site.sshd.cancelled == [site.listen]


async def test_a_stop_ends_at_the_drains_deadline(site: Site) -> None:
    """A request that does not end keeps the listeners open until `controller.drain`, and is cut then."""
    async with daemon(site) as process:
        before = (await process.phase("up"))["bytes_from_agent"]
        reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        start = b"GET /v2/" + 4000 * b"x"
        writer.write(start)
        await process.until_received(before + len(start))

        loop = asyncio.get_running_loop()
        process.child.send_signal(signal.SIGTERM)
        began = loop.time()
        await process.until_draining()
        assert await fetch(site) == b"HTTP/1.1 200 OK"
        assert await process.end(within=20) == 0

        assert loop.time() - began > 4.5
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_a_second_signal_stops_at_once(site: Site) -> None:
    """The first signal waits for an open channel; the second does not."""
    async with daemon(site) as process:
        before = (await process.phase("up"))["bytes_from_agent"]
        _, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        start = b"GET /v2/" + 4000 * b"x"  # far more than a probe sends
        writer.write(start)
        await process.until_received(before + len(start))
        process.child.send_signal(signal.SIGTERM)
        await process.until_draining()
        assert process.child.returncode is None

        process.child.send_signal(signal.SIGTERM)
        assert await process.end(within=3) == 1
        writer.close()

    assert b"Traceback" not in process.output


async def test_systemd_is_notified_when_the_daemon_is_ready_and_when_it_stops(site: Site) -> None:
    """The daemon sends READY=1 once it serves, and STOPPING=1 when it drains."""
    place = site.folder / "notify"
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.setblocking(False)
        async with daemon(site, NOTIFY_SOCKET=str(place)) as process:
            loop = asyncio.get_running_loop()
            received = await asyncio.wait_for(loop.sock_recv(manager, 4096), 10)
            assert received.startswith(b"READY=1\nSTATUS=")
            await process.phase("up")
            process.child.send_signal(signal.SIGTERM)
            while received != b"STOPPING=1":
                received = await asyncio.wait_for(loop.sock_recv(manager, 4096), 10)
            assert await process.end() == 0


# --- what outlives it ---


async def test_a_first_seen_key_outlives_a_kill(site: Site) -> None:
    """The first key seen is remembered: after kill -9, another key at that address is a mismatch."""
    async with daemon(site) as process:
        await process.phase("up")
        process.child.kill()
        await process.end()
    assert site.socket.exists()
    site.sshd.cut()

    async with daemon(site) as process:
        agent = await process.phase("up")
        shown = await process.ask(process.client.agent, "builder-1")
        assert [moment["step"] for moment in shown["history"]].count("seen") == 1
        assert agent["trust"] == "tofu"
        process.child.kill()
        await process.end()

    stranger = Sshd(generate(), site.sshd.accepts)
    async with running_sshd(stranger):
        site.sshd = stranger
        async with daemon(site) as process:
            agent = await process.phase("quarantined")
            assert agent["error"] == "host-key-mismatch"

    assert stranger.logins_started == 0


async def test_a_daemon_without_the_fast_path_reports_it_and_works(site: Site, tmp_path: Path) -> None:
    """If asyncssh lacks an attribute of the fast path, log and status say so, and a pull still works."""
    async with daemon(site, PYTHONPATH=f"{renamed('_send_window', tmp_path / 'lib')}:{Path.cwd()}") as process:
        await process.phase("up")
        assert await fetch(site) == b"HTTP/1.1 200 OK"
        status = await process.ask(process.client.status)

    assert status["fast_path"] == {"active": False, "reason": "asyncssh: Channel._send_window is missing"}
    assert process.output.count(b"fast path switched off") == 1
    assert process.output.count(b"Channel._send_window is missing") == 1


async def test_metrics_are_served_where_the_configuration_says(site: Site) -> None:
    """Metrics are served on the configured address and count the gate's requests."""
    port = free_port()
    site.controller = [f'metrics = "127.0.0.1:{port}"']
    async with daemon(site) as process:
        await process.phase("up")
        await fetch(site)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        scraped = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert b'tunnelmgr_agents{group="default",phase="up"} 1.0' in scraped
    assert b"tunnelmgr_requests_total{" in scraped
