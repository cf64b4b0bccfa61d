"""The API for other machines, of a whole daemon."""

import asyncio
import json
import socket as sockets
import ssl
import urllib.request
from typing import Any

from lab.certificates import make_certificate
from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon
from tests.daemon.test_failing_start import failing_start
from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.config import load
from tunnelmgr.daemon.checks import Finding, check

TOKEN = "a1" * 20


def offer(site: Site, port: int) -> None:
    """Add an API with one operator to the configuration."""
    make_certificate("127.0.0.1", site.folder / "api.pem", site.folder / "api.key")
    (site.folder / "token").touch(mode=0o600)
    (site.folder / "token").write_text(TOKEN)
    site.controller.append(f'audit = "{site.folder}/audit.jsonl"')
    files = f'certificate = "{site.folder}/api.pem"\nkey = "{site.folder}/api.key"\n'
    client = f'[[api.client]]\nname = "deploy"\nrole = "operate"\ntoken_file = "{site.folder}/token"\n'
    site.more = f'[api]\nlisten = "127.0.0.1:{port}"\n{files}{client}'


async def test_an_operator_on_another_machine_acts_under_its_name(site: Site) -> None:
    """The history says that it was requested, and the audit log by whom; a reload notes that the table is fixed."""
    port = free_port()
    offer(site, port)
    audit = site.folder / "audit.jsonl"
    async with daemon(site) as process:
        await process.phase("up")
        trust = ssl.create_default_context(cafile=site.folder / "api.pem")

        def ask(method: str, path: str) -> Any:  # noqa: ANN401 - JSON
            request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", method=method)
            request.add_header("Authorization", f"Bearer {TOKEN}")
            with urllib.request.urlopen(request, timeout=10, context=trust) as answer:  # noqa: S310 - our own
                return json.loads(answer.read())

        assert (await process.ask(ask, "GET", "/v1/status"))["up"] == 1
        assert (await process.ask(ask, "POST", "/v1/agents/builder-1/retry"))["retry"] == "now"
        site.file.write_text(site.file.read_text().replace('role = "operate"', 'role = "read"'))
        remarks = (await process.ask(ask, "POST", "/v1/reload"))["remarks"]

        assert remarks == ["api has changed and takes effect at the next start"]
        await until(lambda: audit.read_text().count("operator-request") == 2)
        entries = [json.loads(line) for line in audit.read_text().splitlines()]
        noted = [entry for entry in entries if entry["code"] == "operator-request"]
        assert [(one["who"], one["method"], one["path"], one["status"]) for one in noted] == [
            ("deploy", "POST", "/v1/agents/builder-1/retry", 200),
            ("deploy", "POST", "/v1/reload", 200),
        ]
        assert TOKEN.encode() not in process.output
        assert TOKEN not in audit.read_text()


async def test_an_address_that_is_taken_is_named(site: Site) -> None:
    """The daemon does not start without its API, and leaves no socket."""
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        offer(site, taken.getsockname()[1])
        output = await failing_start(site)

    assert "api.listen: cannot listen on 127.0.0.1:" in output
    assert not site.socket.exists()


async def test_a_secret_that_others_can_read_is_refused(site: Site) -> None:
    """Neither a token nor the server's key may be readable by everybody: the daemon does not start."""
    offer(site, free_port())
    for secret in ("token", "api.key"):
        (site.folder / secret).chmod(0o644)

        output = await failing_start(site)

        assert f"api: {site.folder}/{secret} can be read by others (mode 0644); run `chmod 600" in output
        (site.folder / secret).chmod(0o600)


def findings_of(site: Site) -> list[Finding]:
    """Return what `check` says of the API of a configuration."""
    site.write()
    config = load(site.file)
    assert config.api is not None
    return [one for one in asyncio.run(check(config)) if one.check == "api"]


def test_check_finds_what_would_keep_the_api_from_starting(site: Site) -> None:
    """The files, their modes and the address are checked; a start would fail for the same reasons."""
    port = free_port()
    offer(site, port)
    good = findings_of(site)
    (site.folder / "api.key").chmod(0o640)
    readable = findings_of(site)
    (site.folder / "api.key").chmod(0o600)
    (site.folder / "api.pem").write_text("no certificate")
    with sockets.create_server(("127.0.0.1", port)):
        bad = findings_of(site)

    assert good == [Finding("api", "ok", f"127.0.0.1:{port}, {site.folder}/api.pem")]
    assert "can be read by others (mode 0640)" in readable[0].message
    assert [one.result for one in bad] == ["failed", "failed"]
    assert "cannot use the certificate and its key" in bad[0].message
    assert bad[1].message.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_the_address_of_a_running_daemon_is_not_taken(site: Site) -> None:
    """While the daemon runs, it has the address itself, so `check` does not report it."""
    port = free_port()
    offer(site, port)
    async with daemon(site) as process:
        await process.phase("up")
        found = [one for one in await check(load(site.file)) if one.check == "api"]

    assert [one.result for one in found] == ["ok"]
