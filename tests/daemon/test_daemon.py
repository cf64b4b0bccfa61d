"""The whole daemon as a process, between a stand-in for an agent's sshd and a registry."""

import asyncio
import os
import signal
import socket as sockets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import Site
from tests.dataplane.renamed_asyncssh import renamed
from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd, until
from tunnelmgr.control.client import ControlClient
from tunnelmgr.daemon.daemon import run
from tunnelmgr.errors import ConfigError, ControlError, DaemonNotRunningError, StoreError


class Process:
    """A running daemon and its log."""

    def __init__(self, child: asyncio.subprocess.Process, client: ControlClient) -> None:
        self.child = child
        self.client = client
        self.output = b""

    async def listen(self) -> None:
        """Collect its log."""
        assert self.child.stderr is not None
        while line := await self.child.stderr.readline():
            self.output += line

    async def ask(self, question: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Send a request over its socket."""
        return await asyncio.to_thread(question, *arguments)

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Return its agents by name; none if it does not answer."""
        try:
            return {agent["name"]: agent for agent in await self.ask(self.client.agents)}
        except DaemonNotRunningError:
            return {}

    async def phase(self, phase: str, name: str = "builder-1") -> dict[str, Any]:
        """Wait until an agent is in a phase, and return it."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + 20
        while clock() < deadline and self.child.returncode is None:
            agent = (await self.agents()).get(name)
            if agent is not None and agent["phase"] == phase:
                return agent
            await asyncio.sleep(0.02)
        raise AssertionError(f"{name} is not {phase}:\n{self.output.decode()}")

    async def until_state(self, *, ok: bool) -> None:
        """Wait until `status` shows whether the state can be written."""
        async with asyncio.timeout(30):
            while (await self.ask(self.client.status))["state"]["ok"] is not ok:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    async def end(self, within: float = 10) -> int:
        """Wait until it ends and return its exit status."""
        async with asyncio.timeout(within):
            return await self.child.wait()


@asynccontextmanager
async def daemon(site: Site, **environment: str) -> AsyncIterator[Process]:
    """Run the daemon as a child."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tunnelmgr",
        "run",
        "-c",
        site.write(),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    process = Process(child, ControlClient(site.socket))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process.listen(), name="log")
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def fetch(site: Site, target: str = "/v2/") -> bytes:
    """Send a request as a client on the agent does, and return the status line."""
    reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]


# --- a life ---


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


async def test_a_drain_lets_an_open_channel_end(site: Site) -> None:
    """A drain finishes open channels and accepts no new ones."""
    async with daemon(site) as process:
        before = (await process.phase("up"))["bytes_from_agent"]
        reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        begun = b"GET /v2/ HTTP/1.1\r\nHost: localhost:5000\r\nPadding: " + 4000 * b"x" + b"\r\n"
        writer.write(begun)
        async with asyncio.timeout(10):
            while (await process.ask(process.client.agents))[0]["bytes_from_agent"] < before + len(begun):
                pass

        process.child.send_signal(signal.SIGTERM)
        await until(lambda: site.sshd.cancelled)
        writer.write(b"Connection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await process.end() == 0


async def test_a_second_signal_stops_at_once(site: Site) -> None:
    """The first signal waits for an open channel; the second does not."""
    async with daemon(site) as process:
        before = (await process.phase("up"))["bytes_from_agent"]
        _, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        begun = b"GET /v2/" + 4000 * b"x"  # far more than a probe sends
        writer.write(begun)
        async with asyncio.timeout(10):
            while (await process.ask(process.client.agents))[0]["bytes_from_agent"] < before + len(begun):
                pass
        process.child.send_signal(signal.SIGTERM)
        await until(lambda: site.sshd.cancelled)
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


# --- reading the configuration again ---


async def test_sighup_follows_a_valid_file(site: Site) -> None:
    """After SIGHUP, an agent that the file no longer names is drained, and a new one comes up."""
    async with daemon(site) as process:
        await process.phase("up")
        site.agents = ("builder-2",)
        site.write()

        process.child.send_signal(signal.SIGHUP)
        # One host key on two live agents would be a quarantine; the first has left by then.
        assert (await process.phase("up", "builder-2"))["agent"] == "static:builder-2"
        assert "builder-1" not in await process.agents()


async def test_sighup_with_an_invalid_file_changes_nothing_and_logs_the_problems(site: Site) -> None:
    """With an invalid file the tunnels stay up, and the log has every problem."""
    async with daemon(site) as process:
        before, connections = await process.phase("up"), len(site.sshd.connections)
        site.more = 'nonsense = 1\n[[group]]\nname = "ci"\npull = 7\n'
        site.write()

        process.child.send_signal(signal.SIGHUP)
        await until(lambda: b"the old one stays" in process.output)
        assert b"source[0].agent[0].nonsense" in process.output
        assert b"group[0].pull" in process.output
        assert (await process.phase("up"))["since"] == before["since"]
        assert len(site.sshd.connections) == connections


async def test_the_reload_command_gets_the_problems_or_the_remarks(site: Site) -> None:
    """`reload` answers with the problems or the remarks."""
    async with daemon(site) as process:
        await process.phase("up")
        site.more = "nonsense = 1"
        site.write()
        with pytest.raises(ConfigError) as bad:
            await process.ask(process.client.reload)
        assert bad.value.problems == ("source[0].agent[0].nonsense: unknown key",)

        site.more = ""
        site.controller = ['metrics = "127.0.0.1:9750"']
        site.write()
        answer = await process.ask(process.client.reload)
        assert answer["remarks"] == ["controller.metrics has changed and takes effect at the next start"]
        assert (await process.phase("up"))["phase"] == "up"


async def ask_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> tuple[bytes, bytes]:
    """Send a request on an open connection; return the status line and the body."""
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    return head.partition(b"\r\n")[0], await reader.readexactly(int(fields[b"content-length"]))


async def test_a_revoked_grant_applies_to_the_next_request_on_an_open_channel(site: Site) -> None:
    """A revoked grant takes effect on an open channel, without ending it or its tunnel."""
    async with daemon(site) as process:
        before = await process.phase("up")
        reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        status, _ = await ask_again(reader, writer, "/v2/team/app/tags/list")
        assert status == b"HTTP/1.1 200 OK"

        site.more = '[[group]]\nname = "default"\npull = ["other/**"]\n'
        site.write()
        await process.ask(process.client.reload)

        status, body = await ask_again(reader, writer, "/v2/team/app/tags/list")
        assert status.startswith(b"HTTP/1.1 403 ")
        assert b"group default may not pull team/app" in body
        assert (await process.phase("up"))["since"] == before["since"]
        writer.close()


async def test_an_agent_that_is_moved_to_another_group_loses_its_tunnel_and_its_rights_at_once(site: Site) -> None:
    """The open channel is closed, and a new tunnel serves the agent with the policy of its new group."""
    async with daemon(site) as process:
        before = await process.phase("up")
        reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
        await ask_again(reader, writer, "/v2/team/app/tags/list")

        site.group = "ci"
        site.more = '[[group]]\nname = "ci"\npull = ["other/**"]\n'
        site.write()
        await process.ask(process.client.reload)

        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        async with asyncio.timeout(10):
            while (after := await process.phase("up"))["since"] == before["since"]:
                pass
        assert after["group"] == "ci"
        assert (await fetch(site, "/v2/team/app/tags/list")).startswith(b"HTTP/1.1 403 ")
        shown = await process.ask(process.client.agent, "builder-1")
        steps = {moment["step"]: moment["detail"] for moment in shown["history"]}
        assert steps["regrouped"] == "from default to ci"


async def test_a_key_that_became_readable_to_others_is_refused_at_a_reload(site: Site) -> None:
    """The key file's mode is checked at every reload."""
    async with daemon(site) as process:
        await process.phase("up")
        os.chmod(site.folder / "id_ed25519", 0o644)  # noqa: PTH101 - a mistake on purpose
        with pytest.raises(ConfigError, match="chmod 600"):
            await process.ask(process.client.reload)


async def test_a_file_that_cannot_be_read_at_a_reload_ends_nothing(site: Site) -> None:
    """The daemon names the unreadable file, keeps running, and follows the next valid file."""
    revoked = site.folder / "revoked"
    revoked.touch()
    (site.folder / "ca.pub").write_bytes(site.sshd.accepts.export_public_key())
    site.more = f'[[authority]]\nname = "images"\nfile = "{site.folder}/ca.pub"\nrevoked = "{revoked}"\n'
    async with daemon(site) as process:
        before = await process.phase("up")
        revoked.unlink()
        revoked.mkdir()
        problem = f"authority[0].revoked: cannot read {revoked}: Is a directory"

        process.child.send_signal(signal.SIGHUP)
        await until(lambda: b"the old one stays" in process.output)
        with pytest.raises(ConfigError) as bad:
            await process.ask(process.client.reload)

        assert problem.encode() in process.output
        assert bad.value.problems == (problem,)
        assert (await process.phase("up"))["since"] == before["since"]
        revoked.rmdir()
        revoked.touch()
        assert (await process.ask(process.client.reload))["reloaded"]


async def test_a_file_that_cannot_be_read_at_the_start_is_a_configuration_error(site: Site) -> None:
    """Exit status 2 keeps systemd from restarting the daemon."""
    (site.folder / "ca.pub").mkdir()
    site.more = f'[[authority]]\nname = "images"\nfile = "{site.folder}/ca.pub"\n'
    async with daemon(site) as process:
        assert await process.end() == 2
    assert b"authority[0].file: cannot read " in process.output
    assert b"Traceback" not in process.output


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

    assert stranger.logins_begun == 0


# --- a start that fails ---


async def failing_start(site: Site) -> str:
    """Start a daemon in this process and return its error; it must not hang."""
    with pytest.raises((ConfigError, ControlError, StoreError)) as failed:
        await asyncio.wait_for(run(site.write()), 10)
    return str(failed.value)


async def test_a_second_daemon_on_the_same_state_refuses(site: Site) -> None:
    """A second daemon on the same state file is refused; the first keeps running."""
    async with daemon(site) as process:
        await process.phase("up")
        first, site.controller = site.file.read_text(), []
        site.file.write_text(first.replace("control.sock", "other.sock"))
        with pytest.raises(StoreError, match="another tunnelmgr uses this state"):
            await asyncio.wait_for(run(site.file), 10)
        assert (await process.phase("up"))["phase"] == "up"


async def test_a_second_daemon_on_the_same_socket_refuses(site: Site) -> None:
    """A second daemon on the same socket is refused before it polls its sources; the first keeps its socket."""
    async with daemon(site) as process:
        await process.phase("up")
        site.file.write_text(site.file.read_text().replace("state.db", "other.db"))
        with pytest.raises(ControlError, match="another daemon answers"):
            await asyncio.wait_for(run(site.file), 10)
        assert (await process.phase("up"))["phase"] == "up"


async def test_a_metrics_port_that_is_taken_is_named(site: Site) -> None:
    """The error names the setting, and nothing is left open."""
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        site.controller = [f'metrics = "127.0.0.1:{taken.getsockname()[1]}"']
        output = await failing_start(site)

    assert "controller.metrics: cannot listen on 127.0.0.1:" in output
    assert "in use" in output
    assert not site.socket.exists()


async def test_a_state_file_of_another_program_is_left_alone(site: Site) -> None:
    """A database of another program is refused and not changed."""
    (site.folder / "state.db").write_bytes(b"not a database, but another program's data" * 50)

    assert "state.db" in await failing_start(site)
    assert (site.folder / "state.db").read_bytes().startswith(b"not a database")


async def test_an_invalid_configuration_is_refused_before_anything_is_created(site: Site) -> None:
    """An invalid configuration creates neither a state file nor a socket."""
    site.trust = "hope"

    assert "source[0].trust[0]" in await failing_start(site)
    assert not (site.folder / "state.db").exists()
    assert not site.socket.exists()


async def test_the_commands_exit_status_tells_why_it_did_not_start(site: Site) -> None:
    """The exit status is 2 for the configuration and 1 for anything else in the way, with one line and no traceback."""
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        site.controller = [f'metrics = "127.0.0.1:{taken.getsockname()[1]}"']
        async with daemon(site) as process:
            assert await process.end() == 1
    assert b"error: controller.metrics" in process.output
    assert b"Traceback" not in process.output

    site.more = "nonsense = 1"
    async with daemon(site) as process:
        assert await process.end() == 2
    assert b"source[0].agent[0].nonsense: unknown key" in process.output


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
