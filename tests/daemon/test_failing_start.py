"""A daemon that cannot start names the reason, and leaves what is there as it was."""

import asyncio
import socket as sockets

import pytest

from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon
from tunnelmgr.daemon.daemon import run
from tunnelmgr.errors import ConfigError, ControlError, StoreError


async def test_a_file_that_cannot_be_read_at_the_start_is_a_configuration_error(site: Site) -> None:
    """Exit status 2 keeps systemd from restarting the daemon."""
    (site.folder / "ca.pub").mkdir()
    site.more = f'[[authority]]\nname = "images"\nfile = "{site.folder}/ca.pub"\n'
    async with daemon(site) as process:
        assert await process.end() == 2
    assert b"authority[0].file: cannot read " in process.output
    assert b"Traceback" not in process.output


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
    """The exit status is 2 for the configuration and 1 for any other cause, with one line and no traceback."""
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
