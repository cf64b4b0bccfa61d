"""The version tells the commit: it comes from git, and a build without git has the one that was written before."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example", "-c", "commit.gpgsign=false")
UNKNOWN = "0.1.0.dev0"
"""The version of a copy that has neither git nor a written version."""


def git(folder: Path, *words: str) -> None:
    """Run git in a folder."""
    subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True)


def hatchling(folder: Path, *words: str) -> str:
    """Run the build backend in a folder and return what it printed on stdout."""
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60
    )
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a repository with one commit, which has the project's settings and its top-level module."""
    folder = tmp_path / "checkout"
    (folder / "tunnelmgr").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "tunnelmgr/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_without_a_tag_the_version_counts_all_commits(checkout: Path) -> None:
    """A repository without tags has a development version of 0.1.0, with its count of commits and its hash."""
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")

    version = hatchling(checkout, "version")

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    (abbreviated,) = re.findall(r"^0\.1\.0\.dev2\+g([0-9a-f]{7,})$", version)
    assert head.startswith(abbreviated)


def test_a_tag_is_the_version_and_later_commits_lead_to_the_next_minor_release(checkout: Path) -> None:
    """The commit of the tag v0.1.0 has the version 0.1.0, and the next commit is the first one of 0.2.0."""
    git(checkout, "tag", "v0.1.0")
    tagged = hatchling(checkout, "version")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "later")

    after = hatchling(checkout, "version")

    assert tagged == "0.1.0"
    assert re.fullmatch(r"0\.2\.0\.dev1\+g[0-9a-f]{7,}", after)


def test_an_sdist_keeps_its_version_without_git(checkout: Path, tmp_path: Path) -> None:
    """A build in an unpacked sdist has the version that the sdist was built with, and its module says so."""
    git(checkout, "tag", "v0.3.0")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "later")
    version = hatchling(checkout, "version")
    hatchling(checkout, "build", "-t", "sdist", "-d", str(tmp_path / "dist"))
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    shown = subprocess.run(
        [sys.executable, "-c", "import tunnelmgr; print(tunnelmgr.__version__)"],
        cwd=unpacked,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()

    assert version.startswith("0.4.0.dev1+g")
    assert hatchling(unpacked, "version") == version
    assert shown == version


def test_a_copy_without_git_works_and_does_not_claim_a_release(checkout: Path) -> None:
    """Without git and without a written version, builds and imports work, with a development version."""
    shutil.rmtree(checkout / ".git")

    imported = subprocess.run(
        [sys.executable, "-c", "import tunnelmgr; print(tunnelmgr.__version__)"],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()

    assert not (checkout / "tunnelmgr/_version.py").exists()
    assert imported == UNKNOWN
    assert hatchling(checkout, "version") == UNKNOWN


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.2.0.dev45+g4b3ee64", "0.2.0"),
        ("0.2.0.dev9+g2108b302e", "0.2.0.dev10+g0a1rc2"),
        ("0.2.0a1", "0.2.0b1"),
        ("0.2.0rc1.dev3+g1b2c3d4", "0.2.0rc1"),
        ("0.2.0rc1", "0.2.0"),
        ("0.1.0", "0.2.0.dev1+g4b3ee64"),
    ],
)
def test_versions_sort_alike_for_pip_and_for_dpkg(older: str, newer: str) -> None:
    """Dpkg takes a later build for newer, and the commit, whose digits and letters mean nothing, stays as it is."""
    code = "import sys; from debian import debian_version as of; print(*(of(each, 'deb12') for each in sys.argv[1:]))"
    run = [sys.executable, "-c", code, older, newer]
    shown = subprocess.run(run, cwd=ROOT / "packaging", check=True, capture_output=True, text=True, timeout=60).stdout

    first, second = shown.split()
    assert Version(older) < Version(newer)
    assert subprocess.run(["dpkg", "--compare-versions", first, "lt", second], check=False).returncode == 0
    assert [each.partition("+")[2] for each in (f"{older}+deb12", f"{newer}+deb12")] == [
        each.partition("+")[2] for each in (first, second)
    ]
