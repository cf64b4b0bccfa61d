"""The role registry with S3: one registry that writes, a read-only replica on the same bucket, and their secrets."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.images import digest_of, make_image, skopeo_copy
from lab.processes import until
from tests.ansible.fleet import Fleet, Run

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

WRITER, REPLICA = "registry-1", "registry-2"
S3, PORT, BUCKET = "10.77.0.5", 5555, "images"
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI+K7MDENG/bPxRfiCYEXAMPLE"
IMAGE = "docker://localhost:5000/team/app:1"


@dataclass(frozen=True)
class Registries:
    """The two registries and the run that installed them, with its most verbose output."""

    fleet: Fleet
    run: Run


@pytest.fixture(scope="module")
def registries(empty_fleet: Fleet) -> Registries:
    """Start a service with S3's API, and install both registries on its bucket."""
    fleet = empty_fleet
    storage = fleet.lab.machine("s3", S3)
    server = Path(sys.executable).with_name("moto_server")
    storage.popen([str(server), "-H", S3, "-p", str(PORT)])
    curl = ["curl", "-fsS", "-X", "PUT", f"http://{S3}:{PORT}/{BUCKET}"]
    signed = "Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"
    until(lambda: storage.run([*curl, "-H", signed]).returncode == 0, "the bucket is made", timeout=30.0, pause=0.2)
    fleet.boot(WRITER, "10.77.0.10", "controllers")
    fleet.boot(REPLICA, "10.77.0.11", "controllers")
    fleet.variables = {
        "registry_storage": "s3",
        "registry_s3_bucket": BUCKET,
        "registry_s3_region": "us-east-1",
        "registry_s3_rootdirectory": "/registry",
        "registry_s3_endpoint": f"http://{S3}:{PORT}",
        "registry_s3_access_key": ACCESS_KEY,
        "registry_s3_secret_key": SECRET_KEY,
        REPLICA: {"registry_read_only": True},
        "tunnelmgr_serial": 2,  # so that the tests take less time
    }
    return Registries(fleet, fleet.play("--tags", "registry", "--diff", "-vvv"))


def test_a_push_at_the_writer_is_pulled_at_the_replica(registries: Registries, tmp_path: Path) -> None:
    """Both serve the bucket's content, and neither sends a client to S3."""
    writer, replica = (registries.fleet.machines[name].network_only() for name in (WRITER, REPLICA))
    image = make_image(tmp_path / "image")

    pushed = skopeo_copy(writer, image, IMAGE)
    pulled = skopeo_copy(replica, IMAGE, f"oci:{tmp_path / 'pulled'}:1")
    layer = json.loads(replica.run(["skopeo", "inspect", "--tls-verify=false", IMAGE], check=True).stdout)["Layers"][0]
    head = replica.run(["curl", "-sS", "-I", f"http://localhost:5000/v2/team/app/blobs/{layer}"], check=True).stdout

    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert digest_of(None, f"oci:{tmp_path / 'pulled'}:1") == digest_of(None, image)
    assert head.startswith("HTTP/1.1 200 ")


def test_a_replica_refuses_a_push(registries: Registries, tmp_path: Path) -> None:
    """A replica answers a push with 405, before anything is written."""
    refused = skopeo_copy(registries.fleet.machines[REPLICA].network_only(), make_image(tmp_path / "image"), IMAGE)

    assert refused.returncode != 0
    assert "405" in refused.stderr or "unsupported" in refused.stderr.lower()


def test_the_secrets_are_where_only_the_service_reads_them(registries: Registries) -> None:
    """The credential and the registries' common secret are in a file of root, and nowhere else, nor printed."""
    common = set()
    for name in (WRITER, REPLICA):
        machine = registries.fleet.machines[name]
        lines = machine.path("/etc/docker/registry/environment").read_text().splitlines()
        values = {key: json.loads(value) for key, value in (line.split("=", 1) for line in lines)}
        common.add(values["REGISTRY_HTTP_SECRET"])
        found = machine.shell(
            f"grep -rlF -e '{SECRET_KEY}' -e '{values['REGISTRY_HTTP_SECRET']}' /etc /var /root /usr/lib/systemd"
        )

        assert (values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"]) == (ACCESS_KEY, SECRET_KEY)
        assert set(found.split()) <= {"/etc/docker/registry/environment", "/etc/docker/registry/http-secret"}
        assert set(machine.shell("stat -c '%U:%G %a' " + " ".join(found.split())).splitlines()) == {"root:root 600"}
        assert SECRET_KEY not in machine.shell("systemctl show docker-registry; ps axww -o args")

    (secret,) = common
    assert len(secret) == 64
    assert secret not in registries.run.output
    assert SECRET_KEY not in registries.run.output


def test_a_second_run_changes_nothing(registries: Registries) -> None:
    """A run with the same inventory keeps the generated secret and reports no change; check mode agrees."""
    run = registries.fleet.play("--tags", "registry")
    checked = registries.fleet.play("--tags", "registry", "--check", "--diff")

    assert run.changed == []
    assert checked.changed == []
    assert SECRET_KEY not in checked.output


def test_two_registries_that_write_to_one_bucket_are_refused(registries: Registries) -> None:
    """Without a read-only replica the run fails before it changes anything, and names both registries."""
    run = registries.fleet.play("--tags", "registry", check=False, **{REPLICA: {"registry_read_only": False}})

    assert run.errors[0].startswith("registry-1 and registry-2 would both write to images")
    assert run.changed == []


def test_a_public_address_is_refused(registries: Registries) -> None:
    """An address that a network reaches is refused in one line."""
    run = registries.fleet.play("--tags", "registry", check=False, registry_address="0.0.0.0")  # noqa: S104 - refused

    assert run.errors == ["registry_address is 0.0.0.0; the registry listens on loopback only: 127.0.0.1 or [::1]"]
    assert run.changed == []
