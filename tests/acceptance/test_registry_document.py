"""docs/registry.md on a machine with systemd: Debian's docker-registry on a bucket, and its garbage collection."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from lab.apt_archive import apt_archive
from lab.booted_machine import BootedMachine
from lab.debian_root import debian_root
from lab.images import make_image, skopeo_copy
from lab.network import Lab
from lab.processes import until
from lab.s3 import S3Service, S3User
from tests.acceptance.document_commands import Document
from tests.acceptance.replica_site import BUCKET, documented_policies

pytestmark = pytest.mark.acceptance

DOCUMENT: Final = Document("registry.md")
CONFIG: Final = "etc/docker/registry/config.yml"
IMAGE: Final = "docker://localhost:5000/team/app:1"


class DocumentedRegistry:
    """A machine whose registry is set up by the document, with the credential of a user."""

    def __init__(self, machine: BootedMachine, s3: S3Service, user: S3User, folder: Path) -> None:
        self.machine = machine
        self.s3 = s3
        self._folder = folder
        settings = yaml.safe_load(DOCUMENT.fenced("Storage in S3", "yaml")[0])
        settings["storage"]["s3"] |= {"regionendpoint": user.endpoint, "secure": False}
        settings["storage"]["maintenance"] = {"uploadpurging": {"enabled": False}}
        self._settings = settings
        credentials, drop_in = DOCUMENT.blocks("Storage in S3")
        machine.shell("apt-get -q update && apt-get -q -y install docker-registry")
        machine.shell(
            credentials.replace("ACCESS_KEY_ID=…", f"ACCESS_KEY_ID={user.access_key}").replace(
                "=…", f"={user.secret_key}"
            )
        )
        machine.shell("mkdir -p /etc/systemd/system/docker-registry.service.d")
        machine.path("/etc/systemd/system/docker-registry.service.d/override.conf").write_text(drop_in)
        machine.shell("systemctl daemon-reload")
        self.configure(read_only=False)

    def configure(self, *, read_only: bool) -> None:
        """Set whether the registry takes pushes, and restart it as the document says."""
        self._settings["storage"]["maintenance"]["readonly"] = {"enabled": read_only}
        self.machine.path(f"/{CONFIG}").write_text(yaml.safe_dump(self._settings))
        self.machine.shell("systemctl restart docker-registry")
        ask = ["curl", "-fsS", "http://127.0.0.1:5000/v2/"]
        until(lambda: self.machine.run(ask).returncode == 0, "the registry answers", timeout=30)

    def push(self, name: str) -> tuple[int, str]:
        """Push a new image to the tag, and return the client's status and message."""
        layout = make_image(self._folder / name, layers=1)
        pushed = skopeo_copy(self.machine.network_only(), layout, IMAGE)
        return pushed.returncode, pushed.stderr


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DocumentedRegistry]:
    """Set up the machine and the bucket."""
    with Lab(tmp_path / "lab") as lab:
        s3 = S3Service(lab.machine("storage", "10.77.0.5"), 9000, tmp_path / "s3").start()
        user = s3.create(BUCKET, documented_policies())["writer"]
        machine = lab.boot("registry", "10.77.0.10", [apt_archive(), debian_root()])
        yield DocumentedRegistry(machine, s3, user, tmp_path)


def test_garbage_is_collected_by_the_documented_commands(registry: DocumentedRegistry) -> None:
    """Each step of the document works with Debian's unit and user; only root can read the credential."""
    first = [registry.push("old"), registry.push("new")]
    full = registry.s3.objects()
    (dry_run,) = DOCUMENT.blocks("Garbage collection")

    registry.configure(read_only=True)
    refused = registry.push("refused")
    looked = registry.machine.shell(dry_run)
    after_look = registry.s3.objects()
    registry.machine.shell(dry_run.replace("--dry-run ", ""))
    collected = registry.s3.objects()
    registry.configure(read_only=False)
    last = registry.push("last")

    assert [status for status, _ in first] == [0, 0], first
    assert (refused[0] != 0, "405" in refused[1]) == (True, True), refused[1]
    assert "blob eligible for deletion" in looked
    assert after_look.keys() == full.keys()
    assert full.keys() - collected.keys()
    assert last[0] == 0, last[1]
    assert registry.machine.shell("stat -c '%a %U' /etc/docker/registry/credentials").strip() == "600 root"
