"""Packages for machines without a network: a layer below their own changes, from which their apt installs.

The host's apt downloads and verifies the packages, and what they need beyond `debian_root()`, once for a checkout, from
the archive that the machines' Debian names. On the machines, apt knows no other archive.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from lab import processes
from lab.debian_root import debian_root
from lab.made_once import made_once

_PACKAGES = ("docker-registry", "python3-venv", "python3-packaging", "openssh-client", "procps")
_FOLDER = Path("srv/archive")  # on the machines
_TIMEOUT = 600.0  # seconds; it takes about ten


def apt_archive() -> Path:
    """Return the layer with what the tests install, and make it if it is missing; put it above `debian_root()`."""
    root = debian_root()
    recipe = hashlib.sha256(repr(_PACKAGES).encode()).hexdigest()[:12]

    def make(layer: Path) -> None:
        _download(root, layer / "apt")
        _make_layer(root, layer)

    return made_once(root.with_name(f"{root.name}-archive-{recipe}"), make)


def _download(root: Path, work: Path) -> None:
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    settings = {
        "Dir": root,
        "Dir::State::status": root / "var/lib/dpkg/status",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    processes.run(["apt-get", "-q", *options, "update"], check=True, timeout=_TIMEOUT)
    words = ["install", "--download-only", "--yes", "--no-install-recommends"]
    processes.run(["apt-get", "-q", *options, *words, *_PACKAGES], check=True, timeout=_TIMEOUT)


def _make_layer(root: Path, layer: Path) -> None:
    archive = layer / _FOLDER
    archive.mkdir(parents=True)
    index = ""
    for package in sorted((layer / "apt/cache/archives").glob("*.deb")):
        control = processes.run(["dpkg-deb", "--field", str(package)], check=True).stdout.strip()
        content = package.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        index += f"{control}\nFilename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n\n"
        package.rename(archive / package.name)
    (archive / "Packages").write_text(index, encoding="utf-8")
    shutil.rmtree(layer / "apt")
    sources = layer / "etc/apt/sources.list.d"
    sources.mkdir(parents=True)
    for other in (root / "etc/apt/sources.list.d").glob("*"):
        (sources / other.name).touch()
    (layer / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:/{_FOLDER} ./\n")
