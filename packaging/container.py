"""The container image: a minimal Debian with the package, as an OCI archive that podman, docker and skopeo read.

mmdebstrap makes its root file system from the archive that apt uses on this machine, and buildah makes the image. Two
images are equal if package, suite and the archive's state are: files and image have no later time than the build's.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from settings import ROOT, run

ROOTFS_SCRIPT = Path(__file__).parent / "container/rootfs.sh"
USER = "900:900"  # as in rootfs.sh; a number, so that an orchestrator can see that it is not root
CONFIG = (
    *("--user", USER, "--workingdir", "/var/lib/tunnelmgr", "--stop-signal", "SIGTERM"),
    *("--entrypoint", '["/usr/bin/tunnelmgr"]', "--cmd", "run"),
    *("--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--env", "LANG=C.UTF-8"),
)


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """Builds `tunnelmgr-VERSION.oci.tar` from the Debian package beside it."""

    output: Path
    version: str
    package: Path
    sbom_python: Path

    def build(self) -> Path:
        """Build the image and its SBOM, and return its path."""
        work = ROOT / "build/image"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        rootfs = work / "rootfs.tar"
        suite = os.environ.get("DEBIAN_SUITE") or platform.freedesktop_os_release()["VERSION_CODENAME"]
        run("sh", str(ROOTFS_SCRIPT), suite, str(self.package), str(rootfs))
        self.commit(rootfs, work / "storage", work / "layout")
        file = self.output / f"tunnelmgr-{self.version}.oci.tar"
        pack(work / "layout", file)
        script = str(Path(__file__).with_name("image_sbom.py"))
        run(
            str(self.sbom_python),
            script,
            str(rootfs),
            self.version,
            suite,
            str(file.with_name(f"{file.name}.cdx.json")),
        )
        return file

    def commit(self, rootfs: Path, storage: Path, layout: Path) -> None:
        """Make the image of a root file system, in a storage of its own, and write it as an OCI layout."""
        places = ("--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "vfs")
        buildah = ("buildah", *places)
        labels = {
            "title": "tunnelmgr",
            "version": self.version,
            "licenses": "Apache-2.0",
            "description": "SSH tunnels from short-lived build agents to a loopback-only registry",
        }
        container = run(*buildah, "from", "scratch")
        run(*buildah, "add", "--quiet", container, str(rootfs), "/")
        shown = [
            word for key, value in labels.items() for word in ("--label", f"org.opencontainers.image.{key}={value}")
        ]
        run(*buildah, "config", *CONFIG, *shown, container)
        how = ("--format", "oci", "--disable-compression=false", "--timestamp", os.environ["SOURCE_DATE_EPOCH"])
        tag = self.version.replace("+", "-")  # a tag has no `+`
        run(*buildah, "commit", "--quiet", *how, "--rm", container, f"oci:{layout}:tunnelmgr:{tag}")


def pack(layout: Path, file: Path) -> None:
    """Write an OCI layout as an archive, whose bytes depend on nothing but the files and the time of the build."""
    order = ("--sort=name", "--format=gnu", f"--mtime=@{os.environ['SOURCE_DATE_EPOCH']}", "--mode=u=rwX,go=rX")
    owner = ("--owner=0", "--group=0", "--numeric-owner")
    run(
        "tar",
        "--create",
        *order,
        *owner,
        f"--file={file}",
        f"--directory={layout}",
        "blobs",
        "index.json",
        "oci-layout",
    )
