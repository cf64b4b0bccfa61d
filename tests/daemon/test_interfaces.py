"""The whole daemon's page, health and events, over its TCP address and its socket."""

import asyncio
import json
import signal

import aiohttp

from tests.control.sse_client import events
from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon, fetch
from tests.ssh.ssh_server import free_port
from tests.until import until_elsewhere
from tunnelmgr.cli.wait import Condition, wait_for


async def get(url: str, connector: aiohttp.BaseConnector | None = None) -> tuple[int, str]:
    """Return the status and the text of an answer."""
    async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
        return answer.status, await answer.text()


async def test_the_page_shows_the_agents_of_a_running_daemon(site: Site) -> None:
    """At `controller.metrics` and on the socket, the page has the agent, its evidence and what it was refused."""
    port = free_port()
    site.controller.append(f'metrics = "127.0.0.1:{port}"')
    async with daemon(site) as process:
        await process.phase("up")
        assert (await fetch(site, "/v2/team/app/manifests/%00")).startswith(b"HTTP/1.1 400 ")
        for url, connector in (
            (f"http://127.0.0.1:{port}", None),
            ("http://localhost", aiohttp.UnixConnector(str(site.socket), force_close=True)),
        ):
            status, html = await get(f"{url}/", connector)
            assert status == 200
            assert "builder-1" in html
            assert "malformed" in html
        assert "tofu" in (await get(f"http://127.0.0.1:{port}/agents/builder-1"))[1]
        assert "tunnelmgr_agents{" in (await get(f"http://127.0.0.1:{port}/metrics"))[1]


async def test_the_daemon_is_ready_until_it_is_told_to_stop(site: Site) -> None:
    """`/readyz` is 200 once the sources have answered, and the line `running` fails while the daemon drains."""
    port = free_port()
    site.controller.append(f'metrics = "127.0.0.1:{port}"')
    async with daemon(site) as process:
        await asyncio.to_thread(wait_for, Condition.READY, process.client, 20)
        await process.phase("up")
        assert (await get(f"http://127.0.0.1:{port}/readyz"))[0] == 200
        assert await get(f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")

        _, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: localhost:5000\r\nPadding: " + 4000 * b"x")
        await process.until_received(4000)
        process.child.send_signal(signal.SIGTERM)
        await process.until_draining()
        status, lines = await get(f"http://127.0.0.1:{port}/readyz")
        writer.close()
        assert await process.end(within=20) == 0

    assert status == 503
    assert {"check": "running", "ok": False, "message": "stopping"} in map(json.loads, lines.splitlines())


async def test_what_happens_to_an_agent_is_a_stream_of_events(site: Site) -> None:
    """`/v1/events` has each step and each phase of an agent, and a stop ends the stream at once."""
    async with daemon(site) as process:
        await until_elsewhere(process.answers, "the daemon answers")
        connector = aiohttp.UnixConnector(str(site.socket))
        async with events("http://localhost/v1/events", connector, Last_Event_ID="another-process-1") as stream:
            first = await stream.next()
            await process.phase("up")
            site.sshd.cut()
            received = []
            while not {"phase: down", "phase: up", "history: lost"} <= set(received):
                event = await stream.next()
                assert event is not None
                facts = json.loads(event.data)
                received.append(f"{event.event}: {facts.get('step') or facts.get('phase')}")
            process.child.send_signal(signal.SIGTERM)
            while await stream.next() is not None:
                pass
        assert await process.end(within=20) == 0

    assert first is not None
    assert first.event == "reset"


async def test_without_the_page_only_health_and_metrics_are_served(site: Site) -> None:
    """With `metrics_page = false` the address has no page, and the socket still has it."""
    port = free_port()
    site.controller += [f'metrics = "127.0.0.1:{port}"', "metrics_page = false"]
    async with daemon(site) as process:
        await until_elsewhere(process.answers, "the daemon answers")
        paths = ("/", "/agents/builder-1", "/events", "/static/status.css")
        assert [(await get(f"http://127.0.0.1:{port}{path}"))[0] for path in paths] == [404] * 4
        assert (await get(f"http://127.0.0.1:{port}/healthz"))[0] == 200
        assert (await get("http://localhost/", aiohttp.UnixConnector(str(site.socket))))[0] == 200
