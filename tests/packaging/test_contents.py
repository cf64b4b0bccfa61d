"""What the packages contain: the same bytes from any folder, no path of the build, and SBOMs that name every part."""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.packaging.conftest import build, clone

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the Debian package, with its control files in DEBIAN."""
    folder = tmp_path_factory.mktemp("unpacked") / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    return folder


def locked() -> dict[str, str]:
    """Return the packages of requirements.lock and their versions."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)(?:\[[^\]]+\])?==([^\s;]+)", text, re.MULTILINE))


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def components(file: Path) -> dict[str, str]:
    """Return the names and versions of a CycloneDX document's components."""
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    return {part["name"].lower().replace("_", "-"): part["version"] for part in document["components"]}


def test_two_builds_in_different_folders_are_equal(dist: Path, tmp_path: Path) -> None:
    """The wheel, the sdist, the Debian package and the SBOMs of a second checkout have the same bytes."""
    second_checkout = clone(tmp_path / "a folder of another length")
    shutil.copytree(dist.parent / "build/wheelhouse", second_checkout / "build/wheelhouse")  # pinned by hashes anyway
    other = build(second_checkout)

    first = {name: found for name, found in hashes(dist).items() if ".oci." not in name}
    second = hashes(other)

    assert sorted(Path(name).suffix for name in first) == [".deb", ".gz", ".json", ".json", ".whl"]
    assert first == second


def test_the_sdist_has_the_tracked_files(checkout: Path, dist: Path) -> None:
    """The source is what git has, with the version that the build wrote, and nothing that earlier builds left."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=checkout, check=True, capture_output=True, text=True).stdout

    assert packed - set(tracked.split()) == {"PKG-INFO", "tunnelmgr/_version.py"}
    assert set(tracked.split()) - packed == set()


def test_no_file_has_the_path_of_the_build(checkout: Path, dist: Path, unpacked: Path, tmp_path: Path) -> None:
    """Neither the Debian package nor the wheel or the sdist contains the folder in which they were built."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    shutil.unpack_archive(sdist, tmp_path / "sdist", filter="data")

    for folder in (unpacked, tmp_path / "wheel", tmp_path / "sdist"):
        found = subprocess.run(["grep", "-rlF", str(checkout), folder], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == (1, "")


def test_every_file_belongs_to_root_and_only_programs_are_executable(package: Path) -> None:
    """Owners, modes and programs are those that Debian expects, and nothing is compiled or left from pip."""
    listing = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=5) for line in listing.splitlines()]

    assert {row[1] for row in rows} == {"root/root"}
    assert {row[0] for row in rows} == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}
    assert [row[5] for row in rows if row[0] == "-rwxr-xr-x"] == ["./opt/tunnelmgr/bin/tunnelmgr"]
    assert [row[5] for row in rows if re.search(r"__pycache__|\.pyc|direct_url|/pip/|activate", row[5])] == []


def test_the_paths_of_the_package_are_those_of_the_installation(unpacked: Path) -> None:
    """The program runs Debian's Python in /opt/tunnelmgr, as the unit expects; /etc has only conffiles."""
    program = (unpacked / "opt/tunnelmgr/bin/tunnelmgr").read_text(encoding="utf-8")
    unit = (unpacked / "usr/lib/systemd/system/tunnelmgr.service").read_text(encoding="utf-8")
    conffiles = (unpacked / "DEBIAN/conffiles").read_text(encoding="utf-8").split()

    assert program.startswith("#!/opt/tunnelmgr/bin/python\n")
    assert (unpacked / "opt/tunnelmgr/bin/python3").readlink() == Path("/usr/bin/python3")
    assert (unpacked / "usr/bin/tunnelmgr").readlink() == Path("/opt/tunnelmgr/bin/tunnelmgr")
    assert "\nExecStart=/opt/tunnelmgr/bin/tunnelmgr run" in unit
    assert conffiles == ["/etc/logrotate.d/tunnelmgr", "/etc/tunnelmgr/tunnelmgr.toml"]
    assert sorted(f"/{file.relative_to(unpacked)}" for file in unpacked.glob("etc/*/*")) == conffiles


def test_the_example_configuration_is_valid_and_has_no_secret(unpacked: Path) -> None:
    """The configuration names a key file and holds none, and it does not name the machine of the build."""
    text = (unpacked / "etc/tunnelmgr/tunnelmgr.toml").read_text(encoding="utf-8")
    parsed = tomllib.loads(text)

    assert parsed["controller"] == {}
    assert parsed["ssh"] == {"user": "tunnel", "key": "/etc/tunnelmgr/id_ed25519"}
    assert "PRIVATE KEY" not in text
    assert not list(unpacked.glob("etc/tunnelmgr/id_*"))


@pytest.mark.parametrize("name", ["prometheus/rules.yml", "prometheus/scrape.yml", "grafana/tunnelmgr.json"])
def test_the_package_has_the_files_for_monitoring(unpacked: Path, name: str) -> None:
    """The alert rules, the job and the dashboard are where docs/operations.md says, as they are in the source."""
    installed = unpacked / "usr/share/tunnelmgr" / name

    assert installed.read_bytes() == (ROOT / "packaging" / name).read_bytes()


def test_the_package_depends_on_the_python_that_it_was_built_with(unpacked: Path) -> None:
    """The environment works with one minor version of Python, and the package requires that one."""
    control = (unpacked / "DEBIAN/control").read_text(encoding="utf-8")
    (folder,) = unpacked.glob("opt/tunnelmgr/lib/python3.*")
    minor = int(folder.name.removeprefix("python3."))

    assert f"python3 (>= 3.{minor}~), python3 (<< 3.{minor + 1}~)" in control


def test_the_sbom_of_the_wheel_has_each_pinned_package_with_its_hashes(dist: Path) -> None:
    """The wheel's SBOM lists what requirements.lock pins, and the hashes that the installation verifies."""
    (file,) = dist.glob("*.whl.cdx.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    hashed = [
        part["name"]
        for part in document["components"]
        if any(reference.get("hashes") for reference in part["externalReferences"])
    ]

    assert components(file) == locked()
    assert len(hashed) == len(locked())
    assert document["metadata"]["component"]["name"] == "tunnelmgr"


def test_the_sbom_of_the_debian_package_has_each_installed_package(dist: Path, unpacked: Path) -> None:
    """The Debian package's SBOM lists exactly the packages in it, and is also inside of it."""
    (file,) = dist.glob("*.deb.cdx.json")
    installed = {
        found.name.removesuffix(".dist-info").rsplit("-", 1)[0].lower().replace("_", "-")
        for found in unpacked.glob("opt/tunnelmgr/lib/python3.*/site-packages/*.dist-info")
    }
    root = json.loads(file.read_text(encoding="utf-8"))["metadata"]["component"]

    assert components(file).keys() | {root["name"]} == installed
    assert root["name"] == "tunnelmgr"
    assert f"-{root['version']}-" in next(dist.glob("*.whl")).name
    assert (unpacked / "usr/share/doc/tunnelmgr/sbom.cdx.json").read_bytes() == file.read_bytes()
