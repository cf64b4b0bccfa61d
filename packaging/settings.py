"""What the builds of all packages share: the project's folder, the version, and how programs are run."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its stdout; its stderr is ours. Raises CalledProcessError if it fails."""
    return subprocess.run(words, cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@dataclass(frozen=True, slots=True)
class Settings:
    """The folder of the results, the version, Debian's Python, the fetched wheels, and the SBOM tool."""

    output: Path
    version: str
    python: str
    wheels: Path
    sbom_tool: Path

    def write_sbom(self, kind: str, subject: Path, file: Path) -> None:
        """Write and validate a CycloneDX document of `subject`; `kind` is a subcommand of cyclonedx-py."""
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        stated = re.sub(r'^dynamic = \["version"\]$', f'version = "{self.version}"', project, flags=re.MULTILINE)
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as described:
            described.write(stated)
            described.flush()
            options = ("--pyproject", described.name, "--output-reproducible", "--validate", "-o", str(file))
            run(str(self.sbom_tool), kind, *options, str(subject))
