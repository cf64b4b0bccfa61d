"""Builds on an agent whose base images come through the tunnel, by the commands in docs/images.md."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from lab.agents import LabAgent
from lab.docker import Docker, dockerd_on
from lab.images import digest_of, make_image, skopeo_copy
from tests.acceptance.document_commands import Document, run_commands
from tests.acceptance.test_clients import GROUPS, MAY_NOT_PULL
from tests.acceptance.test_image_archives import STORAGE

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

BASE: Final = "localhost:5000/team/app:1"
CHILD: Final = "localhost:5000/team/child:1"
DOCUMENT: Final = Document("images.md")


@pytest.fixture
def builder(field: "Field") -> LabAgent:
    """Return an agent that is up, may push to team/*, and has pushed the base image."""
    agent = field.boot("builder")
    field.up(agent, groups=GROUPS)
    pushed = skopeo_copy(agent, make_image(field.folder / "base"), f"docker://{BASE}")
    assert pushed.returncode == 0, pushed.stderr
    return agent


def context(folder: Path, dockerfile: str) -> Path:
    """Write a build context and return its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "hello").write_text("hello\n")
    return folder


def build(builder: LabAgent, docker: Docker, folder: Path) -> str:
    """Build by dockerd's own BuildKit, and return what it reports.

    By its API, since Debian's docker command cannot start it without buildx, which Debian does not have. `version=2` is
    BuildKit (moby, API 1.41, `POST /build`).
    """
    socket = docker.socket.removeprefix("unix://")
    url = f"http://docker/build?version=2&t={CHILD}"
    post = f"curl -sS --unix-socket {socket} -H 'Content-Type: application/x-tar' --data-binary @- '{url}'"
    return run_commands(builder.network_only(), folder, f"tar -c . | {post}").stdout


def layers(docker: Docker, image: str) -> list[str]:
    """Return the digests of an image's layers, as they are without compression."""
    shown = docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
    assert shown.returncode == 0, shown.stderr
    return list(json.loads(shown.stdout))


def test_docker_builds_from_an_image_of_the_tunnel(field: "Field", builder: LabAgent) -> None:
    """`FROM localhost:5000/…` needs no configuration, and the registry has the digest that docker reports."""
    file, commands = DOCUMENT.blocks("docker build")
    folder = context(field.folder / "context", file)
    with dockerd_on(builder) as docker:
        built = run_commands(builder.network_only(), folder, commands, {"DOCKER_HOST": docker.socket})
        refused = docker("build", str(context(folder, "FROM localhost:5000/secret/app:1\n")))

    assert built.returncode == 0, built.stderr
    assert f"digest: {digest_of(field.lab.controller, f'docker://{CHILD}')}" in built.stdout
    assert MAY_NOT_PULL in refused.stderr


def test_dockerds_own_buildkit_builds_from_an_image_of_the_tunnel(field: "Field", builder: LabAgent) -> None:
    """BuildKit needs no configuration either; the image is the base with one more layer, and can be pushed."""
    folder = context(field.folder / "context", DOCUMENT.blocks("docker build")[0])
    with dockerd_on(builder) as docker:
        built = build(builder, docker, folder)
        child = layers(docker, CHILD)
        pushed = docker("push", CHILD)
        docker("pull", BASE)
        base = layers(docker, BASE)
        refused = build(builder, docker, context(folder, "FROM localhost:5000/secret/app:1\n"))

    assert "moby.buildkit.trace" in built
    assert child[:-1] == base
    assert f"digest: {digest_of(field.lab.controller, f'docker://{CHILD}')}" in pushed.stdout
    assert MAY_NOT_PULL in refused


def test_dockerds_own_buildkit_uses_the_tunnel_as_a_mirror_of_docker_hub(field: "Field", builder: LabAgent) -> None:
    """With the documented daemon.json, `FROM team/app:1` comes from the tunnel."""
    folder = context(field.folder / "context", "FROM team/app:1\nCOPY hello /hello\n")
    settings = field.folder / "daemon.json"
    settings.write_text(DOCUMENT.blocks("Images of Docker Hub through the tunnel")[0])
    with dockerd_on(builder, f"--config-file={settings}") as docker:
        built = build(builder, docker, folder)
        child = layers(docker, CHILD)
        docker("pull", BASE)
        base = layers(docker, BASE)

    assert "moby.buildkit.trace" in built
    assert child[:-1] == base


def test_a_builder_in_a_network_of_its_own_does_not_reach_the_tunnel(field: "Field", builder: LabAgent) -> None:
    """A container's localhost is its own: the build fails there, and succeeds in the host's network."""
    folder = context(field.folder / "context", DOCUMENT.blocks("docker build")[0])
    build_only = DOCUMENT.blocks("buildah and podman build")[0].splitlines()[0]
    with tempfile.TemporaryDirectory(prefix="images-") as place:
        settings = Path(place, "storage.conf")
        settings.write_text(STORAGE.format(place=place))
        environment = {"CONTAINERS_STORAGE_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}
        machine = builder.network_only()
        contained = run_commands(
            machine, folder, f"unshare --net sh -ec 'ip link set lo up; {build_only}'", environment
        )
        with_hosts_network = run_commands(machine, folder, build_only, environment)

    assert contained.returncode != 0
    assert "connect: connection refused" in contained.stderr
    assert with_hosts_network.returncode == 0, with_hosts_network.stderr


def test_buildah_builds_from_an_image_of_the_tunnel(field: "Field", builder: LabAgent) -> None:
    """With `--tls-verify=false`, buildah pulls the base through the tunnel and pushes what it has built."""
    folder = context(field.folder / "context", DOCUMENT.blocks("docker build")[0])
    commands = DOCUMENT.blocks("buildah and podman build")[0]
    with tempfile.TemporaryDirectory(prefix="images-") as place:
        settings = Path(place, "storage.conf")
        settings.write_text(STORAGE.format(place=place))
        environment = {"CONTAINERS_STORAGE_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}
        built = run_commands(builder.network_only(), folder, commands, environment)

    assert built.returncode == 0, built.stderr
    manifest = builder.run(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{CHILD}"], check=True)
    assert len(json.loads(manifest.stdout)["layers"]) == 4
