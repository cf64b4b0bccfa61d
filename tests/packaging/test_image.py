"""The container image: its settings, its files and its SBOM, and that podman runs it as compose.yml says."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from lab.processes import Processes, run, until
from tests.packaging.conftest import ROOT, build, clone

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
USER = 900
COMPOSE = ROOT / "packaging/container/compose.yml"

LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--cgroups=disabled")
"""What a test may set, and no control groups, which podman would leave on the host."""

# podman's runtime refuses a host that has both kinds of control groups, so the second kind is hidden from it.
ENGINE = """
mount --make-rprivate /
! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
ip link set lo up
echo ready
exec sleep infinity
"""


class Podman:
    """podman with a storage of its own, in a mount and a network namespace, and the containers that it runs there."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes()
        log = folder / "engine.log"
        holder = self.processes.start(["unshare", "--mount", "--net", "sh", "-ec", ENGINE], log=log)
        until(lambda: holder.poll() is not None or "ready" in log.read_text(), "the namespaces are ready")
        self._runroot = tempfile.mkdtemp(prefix="podman-")  # podman allows a path of 50 characters
        places = ("--root", str(folder / "root"), "--runroot", self._runroot, "--storage-driver", "vfs")
        enter = ("nsenter", "-t", str(holder.pid), "--mount", "--net")
        self._prefix = (*enter, "podman", *places, "--cgroup-manager", "cgroupfs")

    def __call__(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run a command of podman."""
        return run([*self._prefix, *words], check=check, timeout=120)

    def close(self) -> None:
        """Remove the containers and the namespaces."""
        try:
            self("rm", "--all", "--force", "--time=0")
        finally:
            self.processes.end_all()
            shutil.rmtree(self._runroot)


@pytest.fixture(scope="module")
def image(dist: Path) -> Path:
    """Build the image of the built package."""
    build(dist.parent, "image")
    (file,) = dist.glob("*.oci.tar")
    return file


@pytest.fixture(scope="module")
def layout(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the archive."""
    folder = tmp_path_factory.mktemp("layout")
    with tarfile.open(image) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def config(layout: Path) -> dict[str, Any]:
    """Return the image's configuration: OCI image-spec, config.md."""
    document = json.loads((layout / "index.json").read_text())
    for key in ("manifests", "config"):
        described = document[key][0] if key == "manifests" else document[key]
        document = json.loads((layout / "blobs" / described["digest"].replace(":", "/")).read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def rootfs(layout: Path, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the image's only layer."""
    assert len(config["rootfs"]["diff_ids"]) == 1
    (layer,) = json.loads(next(iter(manifests(layout))).read_text())["layers"]
    folder = tmp_path_factory.mktemp("rootfs")
    folder.chmod(0o755)
    blob = layout / "blobs" / layer["digest"].replace(":", "/")
    subprocess.run(["tar", "-x", "--numeric-owner", "-f", blob, "-C", folder], check=True)
    return folder


def manifests(layout: Path) -> Iterator[Path]:
    """Return the files of the image's manifests."""
    for described in json.loads((layout / "index.json").read_text())["manifests"]:
        yield layout / "blobs" / described["digest"].replace(":", "/")


def compose() -> dict[str, Any]:
    """Return the service of compose.yml."""
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["tunnelmgr"]
    assert isinstance(service, dict)
    return service


def test_the_image_runs_the_daemon_without_root(config: dict[str, Any], image: Path) -> None:
    """The image's user is a number that is not 0, its program is tunnelmgr, and its labels name the version."""
    settings = config["config"]

    assert settings["User"] == f"{USER}:{USER}"
    assert (settings["Entrypoint"], settings["Cmd"]) == (["/usr/bin/tunnelmgr"], ["run"])
    assert f"tunnelmgr-{settings['Labels']['org.opencontainers.image.version']}.oci.tar" == image.name
    assert not settings.get("ExposedPorts")


def test_the_files_of_the_image_are_those_of_the_package(rootfs: Path) -> None:
    """The user may write to its state, logs and socket only; no program gains rights; no file names the host."""
    owned = run(["find", str(rootfs), "-uid", str(USER), "-printf", "/%P %m\\n"], check=True).stdout.split("\n")
    privileged = run(["find", str(rootfs), "-type", "f", "-perm", "/6000"], check=True).stdout

    assert sorted(filter(None, owned)) == [
        "/run/tunnelmgr 750",
        "/var/cache/tunnelmgr 700",
        "/var/lib/tunnelmgr 700",
        "/var/log/tunnelmgr 750",
    ]
    assert privileged == ""
    assert not (rootfs / "etc/hostname").exists()
    assert not (rootfs / "etc/resolv.conf").exists()
    assert not list((rootfs / "etc/tunnelmgr").glob("id_*"))
    assert not (rootfs / "usr/bin/apt").exists()


@pytest.fixture
def podman(image: Path, tmp_path: Path) -> Iterator[Podman]:
    """Load the image into an engine without other images."""
    engine = Podman(tmp_path)
    try:
        engine("load", "--quiet", "--input", str(image))
        yield engine
    finally:
        engine.close()


def options(etc: Path) -> list[str]:
    """Return the options of podman for the service of compose.yml, with another folder for the configuration.

    Limits are those that a test may set, and there is no timer, which would need systemd.
    """
    service = compose()
    volumes = [volume.replace("/etc/tunnelmgr:", f"{etc}:", 1) for volume in service["volumes"]]
    return [
        *(f"--user={service['user']}", "--read-only", f"--network={service['network_mode']}"),
        *(f"--cap-drop={capability}" for capability in service["cap_drop"]),
        *(f"--security-opt={option.removesuffix(':true')}" for option in service["security_opt"]),
        *(f"--volume={volume}" for volume in volumes),
        *(f"--tmpfs={place}" for place in service["tmpfs"]),
        *(*LIMITS, "--ulimit=core=0:0"),
        *(f"--health-cmd={' '.join(service['healthcheck']['test'][1:])}", "--health-interval=disable"),
        "--log-driver=k8s-file",
    ]


def test_podman_runs_the_daemon_as_compose_says(podman: Podman, tmp_path: Path) -> None:
    """The documented `init` makes the key, the daemon runs without root and writes only to volumes, and is healthy."""
    etc = tmp_path / "etc"
    etc.mkdir()
    name = podman("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.strip()
    podman("run", "--rm", "--user=0", "--network=none", *LIMITS, f"--volume={etc}:/etc/tunnelmgr", name, "init")

    podman("run", "--detach", "--name=controller", *options(etc), name, *compose()["command"])
    until(lambda: "daemon started" in podman("logs", "controller").stderr, "the daemon starts")
    healthy = podman("healthcheck", "run", "controller", check=False)
    script = "id -u; grep CapEff /proc/1/status; touch /etc/new /opt/tunnelmgr/new /etc/tunnelmgr/new"
    inside = podman("exec", "controller", "sh", "-c", script, check=False)
    state = podman("exec", "controller", "stat", "-c", "%u %a", "/var/lib/tunnelmgr/state.db").stdout
    podman("stop", "--time=30", "controller")
    stopped = podman("inspect", "--format", "{{.State.ExitCode}}", "controller").stdout
    unhealthy = podman("healthcheck", "run", "controller", check=False)

    assert healthy.returncode == 0, podman("logs", "controller").stderr
    assert inside.stdout.split() == [str(USER), "CapEff:", "0000000000000000"]
    assert inside.stderr.count("Read-only file system") == 3
    assert (state, stopped) == (f"{USER} 600\n", "0\n")
    assert unhealthy.returncode != 0


def test_compose_runs_the_image_as_it_is_meant() -> None:
    """The file has the image's user, a read-only root, no capabilities, and the volumes that the daemon needs."""
    service = compose()

    assert service["user"] == f"{USER}:{USER}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["network_mode"] == "host"
    assert {volume.split(":")[1] for volume in service["volumes"]} | {
        mount.split(":")[0] for mount in service["tmpfs"]
    } == {"/etc/tunnelmgr", *(f"/var/{kind}/tunnelmgr" for kind in ("cache", "lib", "log")), "/run/tunnelmgr", "/tmp"}  # noqa: S108


@pytest.mark.skipif(not os.environ.get("TWO_IMAGES"), reason="`make packages-check` builds the image twice")
def test_two_images_are_equal(image: Path, tmp_path: Path) -> None:
    """The image of a second checkout, and its SBOM, have the same bytes while Debian's archive is unchanged."""
    other = build(clone(tmp_path / "other"), "packages")

    for file in (image, image.with_name(f"{image.name}.cdx.json")):
        assert digest(other / file.name) == digest(file)


def digest(file: Path) -> str:
    """Return the hash of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def test_the_sbom_of_the_image_has_every_package(image: Path, rootfs: Path) -> None:
    """The SBOM lists each installed package of Debian with its package URL, and each Python package."""
    document = json.loads(image.with_name(f"{image.name}.cdx.json").read_text(encoding="utf-8"))
    names = {part["name"] for part in document["components"]}
    urls = [part["purl"] for part in document["components"] if part.get("purl", "").startswith("pkg:deb/debian/")]
    query = ["dpkg-query", f"--admindir={rootfs}/var/lib/dpkg", "--showformat", "${Package}\\n", "--show"]
    installed = set(run(query, check=True).stdout.split())
    python = {folder.name.split("-")[0] for folder in rootfs.glob("opt/tunnelmgr/lib/*/site-packages/*.dist-info")}

    assert len(installed) > 50
    assert installed <= names
    assert len(urls) == len(installed)
    assert {name.lower().replace("_", "-") for name in python} <= {name.lower().replace("_", "-") for name in names}
    assert document["metadata"]["component"]["type"] == "container"
