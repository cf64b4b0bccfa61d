"""Real clients with unusual registries: another product, another host name, a mirror, a read-only replica."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.agents import LabAgent
from lab.docker import dockerd_on
from lab.images import digest_of, make_image, skopeo_copy
from lab.processes import until
from lab.registry import Registry
from tests.acceptance.test_clients import GROUPS, ORAS
from tests.gate import stateful_registry

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

APP = "localhost:5000/team/app:1"
MIRROR = """
[host."http://localhost:5000"]
  capabilities = ["pull", "resolve"]
"""


@pytest.fixture
def builder(field: "Field") -> LabAgent:
    """Return an agent that is up and may push to team/*."""
    agent = field.boot("builder")
    field.up(agent, groups=GROUPS)
    return agent


def push_with_oras(field: "Field", agent: LabAgent, target: str) -> list[str]:
    """Push a file with the Python SDK of ORAS; return the HTTP status, which it prints last."""
    file = field.folder / "artifact"
    file.write_bytes(b"artifact")
    argv = [sys.executable, "-c", ORAS, "basic", "push", target, str(file)]
    return agent.run(argv, env={"HOME": str(field.folder)}, timeout=60).stdout.split()[-1:]


def test_clients_push_to_a_registry_that_keeps_upload_state_elsewhere(field: "Field", builder: LabAgent) -> None:
    """Skopeo and ORAS push to a stand-in for olareg, whose Location headers carry a required `state=`."""
    layout = make_image(field.folder / "image", layers=3)
    field.registry.stop()
    server = field.lab.controller.popen([sys.executable, stateful_registry.__file__, "5000"])
    until(lambda: field.reaches(builder), "the other registry answers")

    pushed = skopeo_copy(builder, layout, f"docker://{APP}")
    pulled = skopeo_copy(builder, f"docker://{APP}", f"oci:{field.folder / 'pulled'}:1")
    artifact = push_with_oras(field, builder, "localhost:5000/team/artifact:1")
    server.end()

    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert digest_of(None, f"oci:{field.folder / 'pulled'}:1") == digest_of(None, layout)
    assert artifact == ["201"]


def test_clients_push_to_a_registry_that_names_its_public_host(field: "Field", builder: LabAgent) -> None:
    """Pushes succeed even if docker-registry's `http.host` puts a host into Location that the agent cannot reach."""
    layout = make_image(field.folder / "image", layers=3)
    field.registry.stop()

    with Registry(field.lab.controller, field.folder / "named", public_url="https://registry.example"):
        pushed = skopeo_copy(builder, layout, f"docker://{APP}")
        with dockerd_on(builder) as docker:
            pulled = docker("pull", APP)
            docker("tag", APP, "localhost:5000/team/copy:1")
            again = docker("push", "localhost:5000/team/copy:1")
        artifact = push_with_oras(field, builder, "localhost:5000/team/artifact:1")
        copied = digest_of(field.lab.controller, "docker://localhost:5000/team/copy:1")

    assert pushed.returncode == 0, pushed.stderr
    assert (pulled.returncode, again.returncode) == (0, 0), pulled.stderr + again.stderr
    assert f"digest: {copied}" in again.stdout
    assert artifact == ["201"]


def test_docker_prints_why_a_read_only_registry_refuses_a_push(field: "Field", builder: LabAgent) -> None:
    """Docker prints the gate's message, not `error parsing HTTP 405 response body`."""
    layout = make_image(field.folder / "image", layers=1)
    field.registry.stop()
    folder = field.folder / "replica"
    with Registry(field.lab.controller, folder):
        assert skopeo_copy(builder, layout, f"docker://{APP}").returncode == 0

    with Registry(field.lab.controller, folder, read_only=True), dockerd_on(builder) as docker:
        pulled = docker("pull", APP)
        docker("tag", APP, "localhost:5000/team/copy:1")
        pushed = docker("push", "localhost:5000/team/copy:1")

    assert pulled.returncode == 0
    assert pushed.returncode != 0
    assert "tunnelmgr: the registry at 127.0.0.1:5000 does not allow POST here: it is a read-only" in pushed.stderr


def test_containerd_uses_the_tunnel_as_a_mirror(field: "Field", builder: LabAgent) -> None:
    """Containerd requests docker.io's images with `ns=docker.io`, which the gate does not forward."""
    assert skopeo_copy(builder, make_image(field.folder / "image"), f"docker://{APP}").returncode == 0
    hosts = field.folder / "hosts" / "docker.io"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(MIRROR)
    machine = builder.network_only()

    with tempfile.TemporaryDirectory(prefix="containerd-") as place:  # short, for the socket in it
        socket, log = f"{place}/containerd.sock", Path(place, "log")
        words = ["--root", f"{place}/root", "--state", f"{place}/state", "--address", socket]
        (Path(place) / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        daemon = machine.popen(["containerd", "--config", f"{place}/config.toml", *words], log=log)
        ctr = ["ctr", "--address", socket]
        try:
            until(
                lambda: daemon.poll() is not None or machine.run([*ctr, "version"]).returncode == 0,
                "containerd answers",
                timeout=30,
            )
            fetch = ["content", "fetch", "--hosts-dir", str(hosts.parent), "docker.io/team/app:1"]
            fetched = machine.run([*ctr, *fetch], timeout=60)
        finally:
            daemon.end(patience=10)

    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert "ns=docker.io" not in field.registry.log()
