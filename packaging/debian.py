"""The Debian package: an environment in /opt/tunnelmgr with the pinned wheels, and what an operator expects around it.

A virtual environment names its own path and its Python in many files. So it is made at its final path, in a mount
namespace in which /opt is empty, and belongs to one minor version of Python. dpkg-deb alone is enough: of debhelper's
work, only the maintainer scripts remain, which differ from the usual ones because the unit must not be enabled.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import manual
from settings import ROOT, Settings, run

HERE = Path(__file__).parent
SOURCES = HERE / "debian"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
MAINTAINER = os.environ.get("DEB_MAINTAINER", "tunnelmgr developers <tunnelmgr@localhost.localdomain>")
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/tunnelmgr",
    "zsh": "usr/share/zsh/vendor-completions/_tunnelmgr",
    "fish": "usr/share/fish/vendor_completions.d/tunnelmgr.fish",
}
UNITS = ("tunnelmgr.service", "tunnelmgr-backup.service", "tunnelmgr-backup.timer")
INSTALLED = {
    **{ROOT / "systemd" / unit: f"usr/lib/systemd/system/{unit}" for unit in UNITS},
    SOURCES / "logrotate": "etc/logrotate.d/tunnelmgr",
    SOURCES / "copyright": "usr/share/doc/tunnelmgr/copyright",
    SOURCES / "lintian-overrides": "usr/share/lintian/overrides/tunnelmgr",
    HERE / "prometheus/rules.yml": "usr/share/tunnelmgr/prometheus/rules.yml",
    HERE / "prometheus/scrape.yml": "usr/share/tunnelmgr/prometheus/scrape.yml",
    HERE / "grafana/tunnelmgr.json": "usr/share/tunnelmgr/grafana/tunnelmgr.json",
}


def release_of_debian() -> str:
    """Return this machine's release, such as `deb12`: a package belongs to one, and that of a newer one is newer."""
    facts = platform.freedesktop_os_release()
    return f"{'deb' if facts['ID'] == 'debian' else facts['ID']}{facts.get('VERSION_ID', '')}"


def debian_version(version: str, release: str) -> str:
    """Return Python's version as dpkg's, which sorts alike: 0.2.0~dev45+g4b3ee64 and 0.2.0~rc1 are older than 0.2.0."""
    public, plus, commit = version.partition("+")
    older = re.sub(r"\.dev|(?<=\d)(?=(?:a|b|rc)\d)", lambda cut: f"~{cut[0].strip('.')}", public)
    return f"{older}{plus}{commit}+{release}"


class DebianPackage:
    """Builds `tunnelmgr_VERSION_ARCHITECTURE.deb`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.version = debian_version(settings.version, release_of_debian())
        self.architecture = run("dpkg", "--print-architecture")
        self.stage = ROOT / "build/deb"

    def build(self) -> Path:
        """Build the package and its SBOM, and return its path."""
        shutil.rmtree(self.stage, ignore_errors=True)
        file = self.settings.output / f"tunnelmgr_{self.version}_{self.architecture}.deb"
        self.install_environment()
        self.install_files()
        self.install_documents()
        shutil.copy(self.stage / "usr/share/doc/tunnelmgr/sbom.cdx.json", file.with_name(f"{file.name}.cdx.json"))
        self.write_control()
        self.set_times()
        # One thread, so that the result does not depend on the machine. xz takes 45 s instead of 3 s, for a sixth less.
        run("dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zgzip", "-z6", "--build", str(self.stage), str(file))
        return file

    def install_environment(self) -> None:
        """Make the environment at its final path."""
        if ROOT.is_relative_to("/opt"):
            sys.exit("error: the build hides /opt; move this folder to another place")
        environment = self.stage / "opt/tunnelmgr"
        environment.mkdir(parents=True)
        unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
        facts = self.settings
        paths = (environment, facts.python, ROOT / "requirements.lock", facts.wheels, facts.output, facts.version)
        script = ("sh", str(HERE / "environment.sh"), *map(str, paths), sys.executable, "-m", "pip")
        run(*unshare, *script)

    def install_files(self) -> None:
        """Add the units, the configuration, the completions and the link."""
        for source, target in INSTALLED.items():
            self.add(target, source.read_text(encoding="utf-8"))
        link = self.stage / "usr/bin/tunnelmgr"
        link.parent.mkdir(parents=True)
        link.symlink_to("/opt/tunnelmgr/bin/tunnelmgr")
        self.add("etc/tunnelmgr/tunnelmgr.toml", self.example())
        for shell, target in COMPLETIONS.items():
            words = (str(self.python), "-c", "from tunnelmgr.__main__ import main; main()")
            script = run(*words, env={**os.environ, "_TUNNELMGR_COMPLETE": f"source_{shell}"})
            self.add(target, f"{script}\n")

    def install_documents(self) -> None:
        """Add the manual pages, the documents, the changelog that dpkg's tools read, and the SBOM."""
        manual.write_pages(self.stage / "usr/share/man", self.settings.version)
        folder = "usr/share/doc/tunnelmgr"
        for document in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))):
            name = document.name if document.parent == ROOT else f"docs/{document.name}"
            self.add(f"{folder}/{name}", document.read_text(encoding="utf-8"))
        for picture in sorted((ROOT / "docs/pictures").glob("*.png")):
            self.add(f"{folder}/docs/pictures/{picture.name}", picture.read_bytes())
        day = format_datetime(datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC))
        entry = f"tunnelmgr ({self.version}) unstable; urgency=medium\n\n  * See CHANGELOG.md in this folder.\n"
        changelog = self.add(f"{folder}/changelog", f"{entry}\n -- {MAINTAINER}  {day}\n")
        manual.compress(changelog)
        self.settings.write_sbom("environment", self.python, self.stage / folder / "sbom.cdx.json")

    def example(self) -> str:
        """Return the configuration that `init` writes, without the name of this machine."""
        words = "import pathlib; from tunnelmgr.cli.config_template import configuration; from tunnelmgr.config import"
        code = f"{words} DEFAULT_FILE as file; print(configuration(file, file.with_name('id_ed25519')))"
        text = run(str(self.python), "-c", code)
        example, count = re.subn(
            r'^name = ".*"$',
            '# name = "registry-1"                # default: the host name',
            text,
            count=1,
            flags=re.MULTILINE,
        )
        if not count:
            sys.exit("error: the configuration that `init` writes has no name")
        return f"{example}\n"

    def write_control(self) -> None:
        """Write the files that dpkg reads: control, conffiles, md5sums and the maintainer scripts."""
        files = sorted(file for file in self.stage.rglob("*") if file.is_file() and not file.is_symlink())
        version = run(self.settings.python, "-c", "import sys; print(*sys.version_info[:2])").split()
        facts = {
            "VERSION": self.version,
            "ARCHITECTURE": self.architecture,
            "MAINTAINER": MAINTAINER,
            "SIZE": str(sum(-(-file.stat().st_size // 1024) for file in files)),
            "PYTHON": ".".join(version),
            "NEXT_PYTHON": f"{version[0]}.{int(version[1]) + 1}",
        }
        control = (SOURCES / "control").read_text(encoding="utf-8")
        self.add("DEBIAN/control", re.sub(r"@(\w+)@", lambda found: facts[found[1]], control))
        names = [str(file.relative_to(self.stage)) for file in files]
        self.add("DEBIAN/conffiles", "".join(f"/{name}\n" for name in names if name.startswith("etc/")))
        sums = [hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() for file in files]
        self.add("DEBIAN/md5sums", "".join(f"{found}  {name}\n" for found, name in zip(sums, names, strict=True)))
        for name in SCRIPTS:
            self.add(f"DEBIAN/{name}", (SOURCES / name).read_text(encoding="utf-8"))

    def set_times(self) -> None:
        """Give every file the time of the build, and the modes that do not depend on who builds."""
        when = int(os.environ["SOURCE_DATE_EPOCH"])
        programs = {self.stage / "opt/tunnelmgr/bin/tunnelmgr", *(self.stage / "DEBIAN" / name for name in SCRIPTS)}
        for file in (self.stage, *self.stage.rglob("*")):
            os.utime(file, (when, when), follow_symlinks=False)
            if not file.is_symlink():
                file.chmod(0o755 if file.is_dir() or file in programs else 0o644)

    @property
    def python(self) -> Path:
        """The environment's Python, which also works at the path of the build."""
        return self.stage / "opt/tunnelmgr/bin/python"

    def add(self, name: str, content: str | bytes) -> Path:
        """Write a file of the package and return its path."""
        file = self.stage / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(0o644)
        return file
