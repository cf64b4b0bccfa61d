"""The API for other machines: who may connect, what each role may do, and renewed certificates."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lab.certificates import make_certificate
from tests.control.fake_daemon import FakeDaemon
from tests.ssh.ssh_server import free_port
from tunnelmgr.control.remote import ApiClient, RemoteServer, TlsFiles
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import ReleaseRequested, RetryRequested
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ControlError

READER, OPERATOR = "reader-" + "0" * 32, "operator-" + "1" * 32


@dataclass
class Site:
    """A server with a reader and an operator, each with a token, and a client `dashboard` with a certificate."""

    folder: Path
    daemon: FakeDaemon
    server: RemoteServer
    at: Endpoint
    headers: dict[str, str] = field(default_factory=dict)
    """The header fields of the last answer."""

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        client: str = "",
        json: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Send a request with a token or a client certificate; return the status and the JSON."""
        sent = (headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        url, trust = f"https://{self.at}{path}", self.trusting(client)
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, ssl=trust, headers=sent, json=json) as answer,
        ):
            self.headers.clear()
            self.headers.update(answer.headers)
            return answer.status, await answer.json()

    def trusting(self, client: str = "") -> ssl.SSLContext:
        """Return a client's settings of TLS, with the server's certificate as root."""
        context = ssl.create_default_context(cafile=self.folder / "server.pem")
        if client:
            context.load_cert_chain(self.folder / f"{client}.pem", self.folder / f"{client}.key")
        return context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the certificates of the server and of three clients, of which the server knows two, and the tokens."""
    make_certificate("127.0.0.1", tmp_path / "server.pem", tmp_path / "server.key")
    for name in ("dashboard", "unknown", "foreign"):
        make_certificate("127.0.0.1", tmp_path / f"{name}.pem", tmp_path / f"{name}.key", name)
    authority = (tmp_path / "dashboard.pem").read_text() + (tmp_path / "unknown.pem").read_text()
    (tmp_path / "authority.pem").write_text(authority)
    (tmp_path / "reader.token").write_text(READER + "\n")
    (tmp_path / "operator.token").write_text(OPERATOR)
    return tmp_path


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    """Run the server."""

    async def page(_: web.Request) -> web.Response:
        return web.json_response({"page": True})

    daemon, at = FakeDaemon(), Endpoint("127.0.0.1", free_port())
    clients = [
        ApiClient.of("reader", "read", folder / "reader.token"),
        ApiClient.of("operator", "operate", folder / "operator.token"),
        ApiClient.of("dashboard", "operate", None),
    ]
    files = TlsFiles(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    server = RemoteServer(daemon, clients, files, (*ApiRoutes(daemon).routes(), web.get("/", page)))
    await server.start(at)
    try:
        yield Site(folder, daemon, server, at)
    finally:
        await server.close()


async def test_a_client_without_proof_gets_nothing(folder: Path) -> None:
    """No token, a wrong one, the name of a client, and a certificate of an unknown name are refused alike."""
    async with serving(folder) as site:
        for proof in ({}, {"token": "x" * 40}, {"token": "dashboard"}, {"client": "unknown"}):
            for method, path in (("GET", "/v1/status"), ("GET", "/"), ("POST", "/v1/reload")):
                status, answer = await site.ask(method, path, **proof)
                assert (status, answer["error"]["code"]) == (401, "unauthorized")
                assert site.headers["WWW-Authenticate"] == 'Bearer realm="tunnelmgr"'
        assert (site.daemon.reloads, site.daemon.requests) == (0, [])


async def test_a_certificate_of_another_authority_ends_the_connection(folder: Path) -> None:
    """The server does not answer at all."""
    async with serving(folder) as site:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)):
            await site.ask("GET", "/v1/status", client="foreign")


async def test_a_reader_may_only_read(folder: Path) -> None:
    """Every reading operation answers, and every other one names the role."""
    async with serving(folder) as site:
        assert (await site.ask("GET", "/v1/status", token=READER))[0] == 200
        assert (await site.ask("GET", "/", token=READER)) == (200, {"page": True})
        status, answer = await site.ask("POST", "/v1/reload", token=READER)

        assert status == 403
        assert answer["error"]["message"] == "client reader may only read: its role in [[api.client]] is read"
        assert site.daemon.reloads == 0
        assert site.daemon.requests == [("reader", None, "POST", "/v1/reload", 403)]


@pytest.mark.parametrize("proof", [{"token": OPERATOR}, {"client": "dashboard"}])
async def test_an_operator_acts_under_its_name(folder: Path, proof: dict[str, str]) -> None:
    """What it does is noted for the audit, with the answer; a release has its name in the agent's history."""
    name = "operator" if "token" in proof else "dashboard"
    async with serving(folder) as site:
        assert (await site.ask("POST", "/v1/agents/static:builder-2/retry", **proof))[0] == 200
        body = {"reason": "reinstalled"}
        assert (await site.ask("POST", "/v1/agents/static:builder-3/release", json=body, **proof))[0] == 200
        assert (await site.ask("POST", "/v1/agents/nobody/retry", **proof))[0] == 404

        assert site.daemon.events == [
            RetryRequested(AgentId("static:builder-2")),
            ReleaseRequested(AgentId("static:builder-3"), f"reinstalled (by {name})"),
        ]
        assert site.daemon.requests == [
            (name, None, "POST", "/v1/agents/static:builder-2/retry", 200),
            (name, None, "POST", "/v1/agents/static:builder-3/release", 200),
            (name, None, "POST", "/v1/agents/nobody/retry", 404),
        ]


async def test_a_page_of_a_browser_changes_nothing(folder: Path) -> None:
    """A browser adds a client certificate to the requests of any page, but says which page it is."""
    async with serving(folder) as site:
        headers = {"Origin": "https://elsewhere.example"}
        status, _ = await site.ask("POST", "/v1/reload", client="dashboard", headers=headers)

        assert status == 403
        assert site.daemon.reloads == 0
        assert (await site.ask("GET", "/v1/status", client="dashboard", headers=headers))[0] == 200


@pytest.mark.parametrize(("mode", "status"), [("no-cors", 403), ("cors", 403), ("navigate", 200)])
async def test_a_page_of_another_site_may_only_link(folder: Path, mode: str, status: int) -> None:
    """It could not read an answer, but a browser would add the certificate, and it could hold every stream open."""
    async with serving(folder) as site:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}

        assert (await site.ask("GET", "/", client="dashboard", headers=headers))[0] == status


async def test_an_internal_error_is_noted_too(folder: Path) -> None:
    """The audit has the status that the client got."""
    async with serving(folder) as site:
        site.daemon.bad = RuntimeError("unforeseen")  # type: ignore[assignment]

        assert (await site.ask("POST", "/v1/reload", token=OPERATOR))[0] == 500
        assert site.daemon.requests == [("operator", None, "POST", "/v1/reload", 500)]


async def test_a_renewed_certificate_is_used_for_new_connections(folder: Path) -> None:
    """Files that do not fit together leave the old certificate in use; the next ones are tried again."""
    async with serving(folder) as site:
        old = await certificate_of(site)
        await site.server.renew()
        assert await certificate_of(site) == old

        changed(folder / "server.key", lambda file: file.write_text("no key"))
        await site.server.renew()
        assert await certificate_of(site) == old

        make_certificate("127.0.0.1", folder / "server.pem", folder / "server.key")
        changed(folder / "server.pem", Path.stat)
        await site.server.renew()
        assert await certificate_of(site) != old


def test_files_that_do_not_fit_are_named_at_the_start(folder: Path) -> None:
    """The daemon does not start without its API."""
    files = TlsFiles(folder / "server.pem", folder / "dashboard.key")
    with pytest.raises(ControlError, match="api: cannot use the certificate and its key"):
        RemoteServer(FakeDaemon(), [], files, ())


def changed(file: Path, change: Callable[[Path], object]) -> None:
    """Change a file, so that its time differs on any file system."""
    change(file)
    os.utime(file, (0, file.stat().st_mtime + 10))


async def certificate_of(site: Site) -> bytes:
    """Return the certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(site.at.host, site.at.port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown
