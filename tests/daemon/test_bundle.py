"""What the archive for a bug report leaves out."""

import json
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from tunnelmgr.config import Config, ControllerConfig, SshConfig
from tunnelmgr.control.client import ControlClient
from tunnelmgr.daemon.bundle import redacted, write_bundle


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('password = "hunter2"', 'password = "(redacted)"'),
        ("db_password: hunter2", 'db_password: "(redacted)"'),
        ("token='abc def'", 'token="(redacted)"'),
        ('{"secret_key": "abc"}', '{"secret_key": "(redacted)"}'),
        ("postgresql://tunnelmgr:hunter2@db/state", "postgresql://tunnelmgr:(redacted)@db/state"),
        ('token = """hunter2"""', 'token = "(redacted)"'),
        ('tokens = ["hunter2", "abc"]', 'tokens = "(redacted)"'),
        (r'password = "hunt\"er2"', 'password = "(redacted)"'),
        (r'{"body": "{\"password\": \"hunter2\"}"}', r'{"body": "{\"password\": "(redacted)"}"}'),
        ("password=/hunter2+x/==", 'password="(redacted)"'),
        ("api_key: hunter2", 'api_key: "(redacted)"'),
        ("secret-key: hunter2", 'secret-key: "(redacted)"'),
        ("passphrase=hunter2", 'passphrase="(redacted)"'),
        ("Authorization: Basic aHVudGVyMg==", "Authorization: (redacted)"),
        ("{'Authorization': 'Bearer hunter2'}", "{'Authorization': '(redacted)'}"),
        ("Set-Cookie: a=hunter2; b=hunter2", "Set-Cookie: (redacted)"),
        ("refused bearer hunter2.hunter2", "refused bearer (redacted)"),
        ("https://s3/x?X-Amz-Signature=hunter2", 'https://s3/x?X-Amz-Signature="(redacted)"'),
        ("PATCH /v2/a/blobs/uploads/1?_state=hunter2", 'PATCH /v2/a/blobs/uploads/1?_state="(redacted)"'),
        ("postgresql://tunnelmgr:hunt/er@2@db/state", "postgresql://tunnelmgr:(redacted)@db/state"),
        ("https://hunter2@git.example/team/app", "https://(redacted)@git.example/team/app"),
        (r'{"key": "-----BEGIN RSA PRIVATE KEY-----\nhunter2"}', '{"key": "(private key)"}'),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "(private key)"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    """Values of keys that sound like secrets, passwords in URLs and private keys are replaced."""
    assert redacted(f"before\n{text}\nafter") == f"before\n{shown}\nafter"


@pytest.mark.parametrize(
    "text",
    [
        'token_file = "/etc/tunnelmgr/hetzner.token"',
        'password_file = "credential:state"',
        'state = "postgresql://tunnelmgr@db/state"',
        'pull = ["secret/**"]',
        "# the token is in a file",
        "http://127.0.0.1:5000/v2/team/app@sha256:0123",
        "signature: the host certificate's is invalid",
        "tunnelmgr_tunnels 3",
    ],
)
def test_what_helps_is_kept(text: str) -> None:
    """Files that hold secrets are named, and a word alone is not a secret."""
    assert redacted(text) == text


class Daemon:
    """A daemon whose answers hold secrets."""

    def status(self) -> dict[str, Any]:
        """Return a state with a URL and with a key that sounds like a secret."""
        return {"error": "https://x:hunter2@cloud refused token=hunter2, later", "api_token": ["hunter2"], "agents": 1}

    def agents(self, *, departed: bool = False) -> list[dict[str, Any]]:  # noqa: ARG002 - the client's form
        """Return one agent."""
        return [{"agent": "static:a", "phase": "down"}]

    def agent(self, wanted: str) -> dict[str, Any]:
        """Return an agent with a history."""
        return {"agent": wanted, "history": [{"detail": "password: hunter2"}]}


class Metrics(BaseHTTPRequestHandler):
    """Answers with one metric."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"tunnelmgr_agents 1\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def metrics() -> Iterator[str]:
    """Serve metrics on loopback, and return the address."""
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics")
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_part_is_redacted_and_no_other_user_can_read_it(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older file's mode does not stay, a proxy is not asked for the metrics, and a log need not be UTF-8."""
    programs, target, file = tmp_path / "bin", tmp_path / "report.tar.gz", tmp_path / "tunnelmgr.toml"
    programs.mkdir()
    (programs / "journalctl").write_text("#!/bin/sh\nprintf 'name \\377 token=hunter2\\n'\n")
    (programs / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    file.write_text('password = "hunter2"\n')
    target.touch(mode=0o644)
    config = Config(
        controller=ControllerConfig.model_validate({"metrics": metrics}),
        ssh=SshConfig.model_validate({"agent": "/run/agent.sock"}),
    )

    with target.open("rb") as older:
        write_bundle(target, file, config, cast("ControlClient", Daemon()), [{"message": "secret: hunter2"}])
        assert older.read() == b""

    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        parts = {name.partition("/")[2]: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert [name for name, text in parts.items() if "hunter2" in text] == []
    assert parts["metrics.txt"] == "tunnelmgr_agents 1\n"
    assert parts["log.txt"] == 'name \ufffd token="(redacted)"\n'
    assert json.loads(parts["status.json"]) == {
        "error": 'https://x:(redacted)@cloud refused token="(redacted)" later',
        "api_token": ["(redacted)"],
        "agents": 1,
    }
