"""A running daemon reads its configuration again: a valid file applies at once, an invalid one changes nothing."""

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon, fetch
from tests.until import until, until_elsewhere
from tunnelmgr.errors import ConfigError


async def test_sighup_follows_a_valid_file(site: Site) -> None:
    """After SIGHUP, an agent that the file no longer names is drained, and a new one comes up."""
    async with daemon(site) as process:
        await process.phase("up")
        site.agents = ("builder-2",)
        site.write()

        process.child.send_signal(signal.SIGHUP)
        # One host key on two live agents would be a quarantine; the first has left by then.
        assert (await process.phase("up", "builder-2"))["agent"] == "static:builder-2"
        assert "builder-1" not in await asyncio.to_thread(process.agents)


async def test_sighup_with_an_invalid_file_changes_nothing_and_logs_the_problems(site: Site) -> None:
    """With an invalid file the tunnels stay up, and the log has every problem."""
    async with daemon(site) as process:
        before, connections = await process.phase("up"), len(site.sshd.connections)
        site.more = 'nonsense = 1\n[[group]]\nname = "ci"\npull = 7\n'
        site.write()

        process.child.send_signal(signal.SIGHUP)
        await until(lambda: b"configuration invalid" in process.output)
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

        site.more = '[[audit_forward]]\nname = "siem"\nurl = "https://collector.example/audit"\n'
        site.controller = ['metrics = "127.0.0.1:9750"', f'audit = "{site.folder}/audit.jsonl"']
        site.write()
        answer = await process.ask(process.client.reload)
        assert answer["remarks"] == [
            "controller.metrics has changed and takes effect at the next start",
            "controller.audit has changed and takes effect at the next start",
            "audit_forward has changed and takes effect at the next start",
        ]
        assert (await process.phase("up"))["phase"] == "up"


async def test_a_plan_tells_what_a_reload_would_change_and_changes_nothing(site: Site) -> None:
    """The agents that the file no longer names leave, and new ones join; the same text changes nothing."""
    async with daemon(site) as process:
        before, same = await process.phase("up"), site.file.read_text()
        site.agents = ("builder-2",)
        site.more = '[[group]]\nname = "default"\npull = ["other/**"]\n'
        site.write()
        changed = site.file.read_text()

        preview = await process.ask(process.client.plan, changed, "new.toml")
        with pytest.raises(ConfigError) as bad:
            await process.ask(process.client.plan, changed + "nonsense = 1\n", "new.toml")

        effects = {one["agent"]: one["effect"] for one in preview["agents"]}
        assert effects == {"static:builder-1": "leaves", "static:builder-2": "joins"}
        assert "group default" in [one["key"] for one in preview["changes"]]
        assert bad.value.file == "new.toml"
        assert await process.ask(process.client.plan, same, "") == {"changes": [], "agents": [], "remarks": []}
        assert (await process.phase("up"))["since"] == before["since"]


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
        await until_elsewhere(lambda: process.agents()["builder-1"]["since"] != before["since"], "its tunnel has ended")
        after = await process.phase("up")
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
        await until(lambda: b"configuration invalid" in process.output)
        with pytest.raises(ConfigError) as bad:
            await process.ask(process.client.reload)

        assert problem.encode() in process.output
        assert bad.value.problems == (problem,)
        assert (await process.phase("up"))["since"] == before["since"]
        revoked.rmdir()
        revoked.touch()
        assert (await process.ask(process.client.reload))["reloaded"]
