"""The pull-through cache of the role registry: what it writes, as docker-registry and systemd read it."""

import base64
import hashlib
import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lab import processes
from lab.processes import until
from tests.ssh.ssh_server import free_port

ROLE = Path(__file__).parents[2] / "ansible/roles/registry"
MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
KIND = "application/vnd.oci.image.manifest.v1+json"
ACCOUNT = {"registry_proxy_username": "example", "registry_proxy_password": '*dckr "pat": $and #\\spaced '}
FILES = ("proxy.yml", "proxy_environment", "proxy.service")


@dataclass
class Hub:
    """A registry that gives its images to one account only, by a token, as Docker Hub does."""

    server: ThreadingHTTPServer
    logins: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Serve one image to those who have the token (distribution, "Token Authentication Specification")."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                found.logins.append(self.headers.get("Authorization", ""))
                self._answer(200, "application/json", b'{"token": "valid"}')
            elif self.headers.get("Authorization") != "Bearer valid":
                self._answer(401, "application/json", b"{}")
            else:
                self._answer(200, KIND, MANIFEST)

        do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
            if status == http.client.UNAUTHORIZED:
                self.send_header("WWW-Authenticate", f'Bearer realm="{found.url}/token",service="hub"')
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Hub(server)
        serving = Thread(target=server.serve_forever, args=(0.05,), name="hub")
        serving.start()
        yield found
        server.shutdown()
        serving.join()


def render(folder: Path, **variables: object) -> None:
    """Have Ansible write the role's files for the cache to a folder."""
    templates = [{"template": {"src": f"{ROLE}/templates/{name}.j2", "dest": f"{folder}/{name}"}} for name in FILES]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [f"{ROLE}/defaults/main.yml", f"{ROLE}/vars/main.yml"],
        "tasks": templates,
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    program = Path(sys.executable).with_name("ansible-playbook")
    environment = {
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "home/tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "home/tmp"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "LC_ALL": "C.UTF-8",
    }
    words = [str(program), str(folder / "play.yml"), "-i", "localhost,", "-e", json.dumps(variables)]
    processes.run(words, check=True, env=environment, timeout=60.0)


def environment_of(file: Path) -> dict[str, str]:
    """Return the variables of an environment file, whose values are in double quotes (systemd.exec(5))."""
    pairs = (line.split("=", 1) for line in file.read_text().splitlines())
    return {name: json.loads(value) for name, value in pairs}


@pytest.fixture
def cache(tmp_path: Path, hub: Hub) -> Iterator[int]:
    """Run docker-registry with the rendered configuration and account; returns its port."""
    port = free_port()
    images = {"registry_proxy_folder": str(tmp_path / "images"), "registry_proxy_port": port}
    render(tmp_path, registry_proxy_remote_url=hub.url, **images, **ACCOUNT)
    started = processes.Processes()
    words = ["docker-registry", "serve", str(tmp_path / "proxy.yml")]
    process = started.start(words, log=tmp_path / "log", env=environment_of(tmp_path / "proxy_environment"))
    try:
        until(lambda: process.poll() is not None or status(port, "/v2/") == 200, "the cache answers")
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield port
    finally:
        started.end_all()


def status(port: int, target: str, method: str = "GET") -> int:
    """Return the status of an answer of the cache, 0 if it does not listen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, target, headers={"Accept": KIND})
        return connection.getresponse().status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


def test_the_cache_pulls_with_the_account_and_takes_no_push(hub: Hub, cache: int) -> None:
    """The cache asks the registry of the URL, logs in there with exactly this account, and refuses uploads."""
    pulled = status(cache, "/v2/library/alpine/manifests/3.20")
    pushed = status(cache, "/v2/library/alpine/blobs/uploads/", "POST")

    account = f"{ACCOUNT['registry_proxy_username']}:{ACCOUNT['registry_proxy_password']}"
    assert (pulled, pushed) == (200, 405)
    assert set(hub.logins) == {f"Basic {base64.b64encode(account.encode()).decode()}"}
