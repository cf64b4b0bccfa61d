"""`docker push` of a large image while the member of the cluster that carries it stops or is killed."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab.docker import Docker, dockerd_on
from lab.images import digest_of, skopeo_copy
from lab.processes import Process, until
from tests.acceptance.test_cluster import ClusterField, cluster_field

__all__ = ["cluster_field"]

pytestmark = pytest.mark.acceptance

IMAGE: Final = "localhost:5000/team/big:1"
LAYERS, MIB_PER_LAYER = 3, 100
UNDER_WAY: Final = 60 * 1024 * 1024
"""Bytes that have arrived at the registry when the member ends; more than sockets and windows hold."""
DRAIN: Final = "60s"
"""Time for the transfers of a member that stops: a busy machine compresses the layers slowly."""
REQUEST: Final = re.compile(r'"(PATCH|PUT) /v2/team/big/blobs/uploads/([0-9a-f-]+)\S* HTTP/1\.1" (\d+)')


class DockerPush:
    """A cluster of two members, and an agent whose dockerd has a large image."""

    def __init__(self, field: ClusterField, docker: Docker) -> None:
        self.field = field
        self.agent = field.agents["agent"]
        self._docker = docker
        self.log = field.folder / "push.log"

    def start(self) -> Process:
        """Start to push, and return when much of the image has arrived."""
        argv = ["docker", "-H", self._docker.socket, "push", IMAGE]
        push = self._docker.machine.popen(argv, log=self.log)
        until(lambda: push.poll() is not None or self.received() > UNDER_WAY, "bytes arrive", timeout=30)
        assert push.poll() is None, self.log.read_text()
        return push

    def received(self) -> int:
        """Return the bytes of the uploads in progress, as the registry has stored them."""
        uploads = self.field.folder / "registry/images/docker/registry/v2/repositories/team/big/_uploads"
        return sum(data.stat().st_size for data in uploads.glob("*/data"))

    def requests(self) -> Counter[tuple[str, str]]:
        """Count the requests that carry layers by method and status, as the registry has logged them."""
        found = REQUEST.findall(self.field.registry.log())
        return Counter((method, status) for method, _, status in found)

    def pulled(self) -> str:
        """Pull the image with all its layers as it is, and return its digest."""
        target = f"dir:{self.field.folder / 'pulled'}"
        pulled = skopeo_copy(self.agent, f"docker://{IMAGE}", target)
        assert pulled.returncode == 0, pulled.stderr
        return digest_of(None, target)

    def reported(self) -> str:
        """Return the digest that docker has printed at the end."""
        found = re.search(r"digest: (sha256:[0-9a-f]{64})", self.log.read_text())
        assert found is not None, self.log.read_text()
        return found[1]


def write_image(file: Path) -> None:
    """Write an image of random layers as `docker save` does (moby, image spec 1.2)."""
    digests, layers = [], []
    with tarfile.open(file, "w") as archive:
        for number in range(LAYERS):
            layer = io.BytesIO()
            with tarfile.open(fileobj=layer, mode="w") as content:
                add(content, f"random-{number}", os.urandom(MIB_PER_LAYER * 1024 * 1024))
            digests.append(f"sha256:{hashlib.sha256(layer.getbuffer()).hexdigest()}")
            layers.append(f"{number}/layer.tar")
            add(archive, layers[-1], layer.getvalue())
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}}
        add(archive, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": layers}]
        add(archive, "manifest.json", json.dumps(manifest).encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def push(cluster_field: ClusterField) -> Iterator[DockerPush]:
    """Start the members and dockerd, and load the image into it."""
    field = cluster_field
    agent = field.boot("agent")
    field.up(agent, drain=DRAIN)
    write_image(field.folder / "image.tar")
    with dockerd_on(agent) as docker:
        loaded = docker("load", "-i", str(field.folder / "image.tar"))
        assert loaded.returncode == 0, loaded.stderr
        (field.folder / "image.tar").unlink()
        yield DockerPush(field, docker)


def test_docker_push_continues_through_a_handover(push: DockerPush) -> None:
    """A stop of the holder costs docker nothing: each layer is sent once, in one request, and can be pulled."""
    field = push.field
    name = field.who_answers(push.agent)
    pushing = push.start()

    field.controller.terminate()
    until(lambda: field.who_answers(push.agent) not in {"", name}, "the other member answers", timeout=20)
    assert pushing.poll() is None, "the push is still in progress"
    status = pushing.wait(60)

    assert status == 0, push.log.read_text()
    # The layers and the image's configuration.
    assert push.requests() == {("PATCH", "202"): LAYERS + 1, ("PUT", "201"): LAYERS + 1}
    assert "Retrying" not in push.log.read_text()
    assert field.controller.stop(patience=30) == 0
    assert push.pulled() == push.reported()


def test_docker_push_recovers_from_a_killed_member(push: DockerPush) -> None:
    """After `kill -9` of the holder, docker sends the cut layers again by itself, through the other member."""
    pushing = push.start()

    push.field.controller.kill()
    status = pushing.wait(60)

    assert status == 0, push.log.read_text()
    assert "Retrying" in push.log.read_text(), "the member was killed during the push"
    assert push.requests()["PUT", "201"] == LAYERS + 1
    assert push.pulled() == push.reported()
