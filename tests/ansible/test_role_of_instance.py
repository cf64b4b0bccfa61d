"""The role registry with S3 and without a credential: the registry takes that of its instance's role, as in EC2."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.images import digest_of, make_image, skopeo_copy
from lab.namespaces import Namespace
from lab.network import Lab
from lab.processes import until
from lab.s3 import S3Service
from lab.s3.instance_metadata import ADDRESS

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "ansible/roles/registry"
ALLOWED = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
IMAGE = "docker://localhost:5000/team/app:1"


@dataclass(frozen=True)
class Instance:
    """A machine beside S3, and the files that the role writes for its registry."""

    machine: Namespace
    s3: S3Service
    folder: Path

    def serve_registry(self) -> None:
        """Start the registry with these files, as the unit does: with no other environment."""
        variables = (self.folder / "environment").read_text().splitlines()
        words = ["env", "-i", f"PATH={os.defpath}", *variables, "docker-registry", "serve"]
        self.machine.popen([*words, str(self.folder / "config.yml")], log=self.folder / "registry.log")
        until(lambda: self.machine.listeners(5000), "the registry listens")


def render(template: str, target: Path, endpoint: str) -> None:
    """Write a template of the role with its defaults, as Ansible does."""
    variables = {
        "registry_storage": "s3",
        "registry_s3_bucket": "images",
        "registry_s3_region": "us-east-1",
        "registry_s3_endpoint": endpoint,
        "registry_shared_secret": "a-secret",
    }
    program = [str(Path(sys.executable).with_name("ansible")), "localhost", "-c", "local", "-m", "template"]
    arguments = json.dumps({"src": str(ROLE / "templates" / template), "dest": str(target)})
    words = [*program, "-a", arguments, "-e", f"@{ROLE / 'defaults/main.yml'}", "-e", json.dumps(variables)]
    home = {"HOME": str(target.parent), "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, env=home, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """Start an S3 that authenticates, and the instance metadata service with the credential of a user of it."""
    with Lab(tmp_path / "lab") as lab:
        machine = lab.machine("instance", "10.77.0.5")
        s3 = S3Service(machine, 9000, tmp_path / "s3").start()
        user = s3.create("images", {"role": ALLOWED})["role"]
        machine.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        module = [sys.executable, "-m", "lab.s3.instance_metadata"]
        machine.popen(module, env={**user.environment, "PYTHONPATH": str(ROOT)}, log=tmp_path / "metadata.log")
        until(lambda: machine.listeners(80), "the instance metadata service listens")
        for template in ("config.yml", "environment"):
            render(f"{template}.j2", tmp_path / template, user.endpoint)
        yield Instance(machine, s3, tmp_path)
        s3.stop()


def test_without_a_credential_the_registry_uses_the_role_of_its_instance(instance: Instance, tmp_path: Path) -> None:
    """The role's files have no credential, and the registry stores an image with that of the metadata service."""
    image = make_image(tmp_path / "image")
    instance.serve_registry()

    pushed = skopeo_copy(instance.machine, image, IMAGE)

    names = [line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()]
    assert names == ["REGISTRY_HTTP_SECRET"]
    assert "key" not in (tmp_path / "config.yml").read_text()
    assert pushed.returncode == 0, pushed.stderr
    assert digest_of(instance.machine, IMAGE) == digest_of(None, image)
    assert [key for key in instance.s3.objects() if key.endswith("/current/link")] != []
