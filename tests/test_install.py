"""The documented installation works literally in a clean export, and pip accepts only what has a pinned hash."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGET = "/opt/tunnelmgr"
FETCHING = ("--require-hashes", "--only-binary=:all:")
LOCAL = ("--no-index", "--no-deps")
TRIAL = "--no-deps --upgrade asyncssh"
"""The command of `make newest`, which fetches a release that is not pinned yet."""


def blocks(section: str) -> list[str]:
    """Return the lines of code in a section of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^##? |^### |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^    (.+)$", body, re.MULTILINE)


def pip_lines() -> Iterator[tuple[str, str]]:
    """Find the commands of pip in the project: the file, and the command line."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.startswith(("docs/", "README", "CONTRIBUTING", "Makefile", "systemd/", ".ci/")) and ".png" not in name:
            text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
            for line in text.splitlines():
                if re.search(r"\bpip (install|wheel)\b|\$\(PIP\)", line) and TRIAL not in line:
                    yield name, line.strip()
    role = (ROOT / "ansible/roles/controller/tasks/make_environment.yml").read_text(encoding="utf-8")
    for words in re.findall(r"extra_args: (.*)", role):
        yield "the role", words


def missing(words: str) -> list[str]:
    """Return the required options that a command of pip lacks; the definition of `PIP` itself is exempt."""
    if words.startswith("PIP :="):
        return []
    wanted = (*LOCAL, *(("--no-build-isolation",) if re.search(r" (-e )?\.( |$)", words) else ()))
    if "-r " in words or "require-hashes" in words:
        wanted = FETCHING
    return [option for option in wanted if option not in words]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Export the working tree, without untracked files."""
    changed = subprocess.run(["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folder = tmp_path / "export"
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", changed.strip() or "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def environment(command: str, report: Path) -> Mapping[str, str]:
    """Return an environment in which pip downloads only with hashes, and only wheels."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ONLY_BINARY": ":all:", "PIP_REPORT": str(report)}
    if "--require-hashes" not in command:
        variables |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    return variables


def run_in(command: str, folder: Path, report: Path) -> subprocess.CompletedProcess[str]:
    """Run a documented command in the export."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment(command, report),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_the_documented_commands_install_a_tunnelmgr_that_runs(export: Path, tmp_path: Path) -> None:
    """The documented commands build and install in new environments; every download is a wheel with a hash."""
    commands = [line for line in blocks("Install from the wheel") if "-m venv" in line or "/pip " in line]
    assert len(commands) == 6

    fetched = []
    for number, command in enumerate(commands):
        report = tmp_path / f"{number}.json"
        run = run_in(command.replace(TARGET, str(tmp_path / "opt")), export, report)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        if report.exists() and "--require-hashes" in command:
            fetched += json.loads(report.read_text(encoding="utf-8"))["install"]

    assert len(fetched) > 40
    for package in fetched:
        assert package["download_info"]["url"].endswith(".whl")
        assert package["download_info"]["archive_info"]["hashes"]["sha256"]
    version = subprocess.run([tmp_path / "opt/bin/tunnelmgr", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tunnelmgr \d+\.\d+\.\d+(\.dev\d+(\+\S+)?)?\n", version.stdout)
    assert not list((tmp_path / "opt").rglob("hatchling"))


@pytest.mark.acceptance
@pytest.mark.parametrize("command", ["install --no-deps .", "wheel --no-deps -w dist ."])
def test_a_build_that_fetches_its_backend_would_have_failed(export: Path, tmp_path: Path, command: str) -> None:
    """In the environment of the test above, a build that downloads its backend fails."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)

    run = run_in(f"{tmp_path}/venv/bin/pip {command}", export, tmp_path / "report.json")

    assert run.returncode != 0
    assert "hatchling" in run.stderr


def test_every_documented_pip_command_is_safe() -> None:
    """Downloads require hashes and wheels; builds and local installations download nothing."""
    found = list(pip_lines())

    assert {name for name, _ in found} >= {"docs/operations.md", "Makefile", "the role"}
    assert [(name, words, missing(words)) for name, words in found if missing(words)] == []


def test_the_upgrade_installs_as_the_installation_does() -> None:
    """The upgrade uses the same pip commands, with `--force-reinstall` for a wheel of the same version."""
    installs = [line for line in blocks("Install from the wheel") if line.startswith(f"{TARGET}/bin/pip")]
    upgrades = [line for line in blocks("Upgrade") if "/pip " in line]

    assert [line.replace(" --force-reinstall", "") for line in upgrades] == installs


def test_the_build_group_has_the_build_requirements() -> None:
    """The dependency group `build` has the requirements of the build system, and the lock file has each of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    locked = (ROOT / "requirements-build.lock").read_text(encoding="utf-8")

    assert set(project["dependency-groups"]["build"]) >= set(project["build-system"]["requires"])
    for entry in project["dependency-groups"]["build"]:
        (name,) = re.findall(r"^[\w-]+", entry)
        assert re.search(rf"^{name}==", locked, re.MULTILINE)


def test_no_file_names_an_index_of_packages() -> None:
    """No lock file or build file names an index, because the machine chooses it."""
    for file in (*ROOT.glob("requirements*.lock"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        text = file.read_text(encoding="utf-8").replace("--no-emit-index-url", "")
        assert not re.search(r"index-url|find-links|https?://(?!opencontainers)", text), file
