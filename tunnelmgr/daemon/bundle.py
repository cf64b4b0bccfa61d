"""The archive for a bug report: what the daemon knows and how it is configured, without keys and passwords."""

import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tunnelmgr import __version__
from tunnelmgr.config import Config
from tunnelmgr.control.client import ControlClient
from tunnelmgr.errors import ControlError

PARTS: Final = ("asyncssh", "cryptography", "uvloop", "aiohttp", "boto3", "hcloud", "psycopg", "pydantic")
"""The libraries whose versions matter."""
LOG_LINES: Final = 2000
MAX_HISTORIES: Final = 500
"""Agents whose histories are in the archive: those that are not up come first."""
TIMEOUT: Final = 20.0
"""Seconds for the log and for the metrics."""
_NAME: Final = r"(?:pass(?:word|wd|phrase)|secret|token|credential|(?:api|access|private)[_-]?key)s?"
_SECRET: Final = re.compile(
    rf"""(?ix) ( (?:{_NAME}[\w.-]* | \b(?:sig|[\w-]*signature|_state)(?==)) \\*["']? \s* [=:] \s* )
    (?: \"{{3}} [\s\S]*? \"{{3}} | '{{3}} [\s\S]*? '{{3}} | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'
      | \\+" [\s\S]*? \\+" | \[[^\]]*\] | \S+ )"""
)
_SECRET_KEY: Final = re.compile(_NAME, re.IGNORECASE)
_HEADER: Final = re.compile(r"""(?i)((?:authorization|cookie)\\*["']?\s*[=:]\s*\\*["']?)[^\r\n"'\\]+""")
_BEARER: Final = re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}")
_PASSWORD_IN_URL: Final = re.compile(r"""(://[^\s/:@"']*:)(?![0-9]{1,5}/)[^\s"']+@""")
_TOKEN_IN_URL: Final = re.compile(r"""(?i)(https?://)[^\s/:@"']+@""")
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"
    r"(?:.*?-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|[A-Za-z0-9+/=\s\\]*)",
    re.DOTALL,
)
"""A private key, also one whose end is cut off."""
_KEPT: Final = re.compile(r"/(?:etc|home|opt|root|run|srv|tmp|usr|var)/|credential:")
"""How the name of a file that holds a secret begins; a secret in base64 may begin with a slash too."""


def write_bundle(target: Path, file: Path, config: Config, client: ControlClient, steps: list[dict[str, Any]]) -> None:
    """Write the archive, readable by this user only; raises ControlError if that fails.

    A part that cannot be had is replaced by the reason.
    """
    parts: dict[str, Callable[[], str]] = {
        "doctor.json": lambda: _json(steps),
        "versions.json": lambda: _json(_versions()),
        "config.toml": lambda: redacted(file.read_text(encoding="utf-8", errors="replace")),
        "status.json": lambda: _json(client.status()),
        "agents.json": lambda: _json(client.agents(departed=True)),
        "histories.json": lambda: _json(list(_histories(client))),
        "metrics.txt": lambda: _metrics(config),
        "log.txt": _log,
    }
    try:
        target.unlink(missing_ok=True)  # its mode would stay, and who has opened it could read on
        with (
            os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened,
            tarfile.open(fileobj=opened, mode="w:gz") as archive,
        ):
            for name, make in parts.items():
                _add(archive, f"tunnelmgr-report/{name}", _made(make).encode("utf-8", errors="replace"))
    except OSError as failed:
        raise ControlError(f"cannot write {target}: {failed.strerror or failed}") from failed


def redacted(text: str) -> str:
    """Return a text without the values of keys such as `password` or `token`, passwords in URLs, and private keys.

    Paths stay, since the configuration names its secrets by the files that hold them.
    """
    text = _PRIVATE_KEY.sub("(private key)", text)
    for secret in (_PASSWORD_IN_URL, _TOKEN_IN_URL):
        text = secret.sub(r"\1(redacted)@", text)
    for secret in (_HEADER, _BEARER):
        text = secret.sub(r"\1(redacted)", text)
    return _SECRET.sub(lambda found: found[0] if _is_path(found) else f'{found[1]}"(redacted)"', text)


def _is_path(found: re.Match[str]) -> bool:
    return _KEPT.match(found[0].removeprefix(found[1]).strip("\"'")) is not None


def _redacted_json(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value whose strings are redacted, which the text of the whole would not survive."""
    if isinstance(value, str):
        return "(redacted)" if _SECRET_KEY.search(key) and not _KEPT.match(value) else redacted(value)
    if isinstance(value, dict):
        return {name: _redacted_json(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_redacted_json(one, key) for one in value]
    return value


def _made(make: Callable[[], str]) -> str:
    try:
        return make()
    except (OSError, ControlError, HTTPException, subprocess.SubprocessError) as failed:
        return f"not available: {failed}\n"


def _histories(client: ControlClient) -> Iterator[dict[str, Any]]:
    agents = sorted(client.agents(), key=lambda agent: (agent["phase"] == "up", agent["agent"]))
    for agent in agents[:MAX_HISTORIES]:
        with suppress(ControlError):  # it has left meanwhile
            yield client.agent(agent["agent"])


def _versions() -> dict[str, str]:
    found = {"tunnelmgr": __version__, "python": platform.python_version(), "kernel": platform.release()}
    for part in PARTS:
        with suppress(PackageNotFoundError):
            found[part] = version(part)
    return found


def _metrics(config: Config) -> str:
    at = config.controller.metrics
    if at is None:
        return "controller.metrics is not set\n"
    here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not through the proxy of the environment
    with here.open(f"http://{at}/metrics", timeout=TIMEOUT) as answer:
        return str(answer.read().decode(errors="replace"))


def _log() -> str:
    """Return the unit's last lines, if the daemon runs under systemd."""
    if shutil.which("journalctl") is None:
        return "journalctl is not installed\n"
    words = ["journalctl", "-u", "tunnelmgr", "-n", str(LOG_LINES), "-o", "cat", "--no-pager"]
    shown = subprocess.run(words, capture_output=True, timeout=TIMEOUT, check=True)  # noqa: S603 - constants
    return redacted(shown.stdout.decode(errors="replace"))


def _json(value: object) -> str:
    return json.dumps(_redacted_json(value), indent=2, ensure_ascii=False) + "\n"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(content))
