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
_SECRET: Final = re.compile(
    r"""(?ix) ( (?:password|passwd|secret|token|credential)s? \w* ["']? \s* [=:] \s* ) (?: "[^"]*" | '[^']*' | \S+ )"""
)
_USER_IN_URL: Final = re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+@")
_PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


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
        with (
            os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened,
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
    text = _USER_IN_URL.sub(r"\1(redacted)@", text)
    return _SECRET.sub(lambda found: found[0] if _is_path(found) else f'{found[1]}"(redacted)"', text)


def _is_path(found: re.Match[str]) -> bool:
    return found[0].removeprefix(found[1]).strip("\"'").startswith(("/", "credential:"))


def _made(make: Callable[[], str]) -> str:
    try:
        return make()
    except (OSError, ControlError, subprocess.SubprocessError) as failed:
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
    with urllib.request.urlopen(f"http://{at}/metrics", timeout=TIMEOUT) as answer:
        return str(answer.read().decode())


def _log() -> str:
    """Return the unit's last lines, if the daemon runs under systemd."""
    if shutil.which("journalctl") is None:
        return "journalctl is not installed\n"
    words = ["journalctl", "-u", "tunnelmgr", "-n", str(LOG_LINES), "-o", "cat", "--no-pager"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=True)  # noqa: S603 - constants
    return redacted(shown.stdout)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(content))
