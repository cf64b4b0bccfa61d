"""Images go from a machine without a registry, through the tunnels of two agents, to another such machine.

Each way is the one in docs/images.md: the tests run the commands that are printed there.
"""

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from lab.agents import LabAgent
from lab.docker import Docker, dockerd_on
from lab.images import digest_of
from lab.network import Lab
from tests.acceptance.conftest import Field
from tests.acceptance.document_commands import Document, run_commands

pytestmark = pytest.mark.acceptance

IMAGE: Final = "localhost:5000/team/app:1"
DOCUMENT: Final = Document("images.md")
CLIENTS: Final = ("docker", "podman", "skopeo")
DOCKERFILE: Final = """\
FROM scratch
COPY one /one
COPY two /two
ENV GREETING=hello
"""
STORAGE: Final = '[storage]\ndriver = "vfs"\ngraphroot = "{place}/root"\nrunroot = "{place}/run"\n'
ENGINE: Final = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
"""A network namespace has no systemd, as podman otherwise expects of its host."""


@dataclass(frozen=True)
class Archived:
    """What an archive holds: the image's configuration, its names, and its layers, as digests of their bytes."""

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]

    @classmethod
    def read(cls, archive: Path) -> "Archived":
        """Read the archive of one image (moby, image spec 1.2)."""

        def content(name: str) -> bytes:
            member = tar.extractfile(name)
            assert member is not None, name
            return member.read()

        with tarfile.open(archive) as tar:
            (image,) = json.loads(content("manifest.json"))
            digests = [hashlib.sha256(content(name)).hexdigest() for name in (image["Config"], *image["Layers"])]
            return cls(digests[0], tuple(image["RepoTags"]), tuple(digests[1:]))


@dataclass
class Machines:
    """An office without a tunnel, an agent that may push, one that may only pull, and a dockerd on each."""

    field: Field
    office: Docker
    builder: LabAgent
    ci: LabAgent
    sockets: Mapping[str, str]
    """Of the agents' dockerd, by the agent's name."""
    original: Path
    """The archive that `docker save` has written in the office."""
    storage: Path

    def run(self, agent: LabAgent, commands: str, folder: Path, *, with_own_etc: bool = False) -> CompletedProcess[str]:
        """Run commands on an agent, whose podman and buildah have a store of their own."""
        place = self.storage / agent.name
        place.mkdir(exist_ok=True)
        (place / "storage.conf").write_text(STORAGE.format(place=place))
        (place / "containers.conf").write_text(ENGINE)
        environment = {
            "DOCKER_HOST": self.sockets[agent.name],
            "CONTAINERS_STORAGE_CONF": f"{place}/storage.conf",
            "CONTAINERS_CONF": f"{place}/containers.conf",
            "HOME": str(place),
        }
        return run_commands(agent if with_own_etc else agent.network_only(), folder, commands, environment)

    def forget(self, agent: LabAgent, client: str, folder: Path) -> None:
        """Remove the image from a client's store: podman reports an image ID's first digest as long as it has it."""
        if client != "skopeo":
            assert self.run(agent, f"{client} rmi {IMAGE}", folder).returncode == 0

    def served_digest(self, image: str = IMAGE) -> str:
        """Return the digest of an image from the registry itself, not through a tunnel."""
        return digest_of(self.field.lab.controller, f"docker://{image}")


def build_in_office(docker: Docker, folder: Path) -> Path:
    """Build an image of two layers, save it, remove it, and return the archive."""
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "one").write_bytes(b"1" * 100_000)
    (folder / "two").write_bytes(bytes(range(256)) * 1000)
    archive = folder / "app.tar"
    for words in (("build", "-q", "-t", IMAGE, str(folder)), ("save", "-o", str(archive), IMAGE), ("rmi", IMAGE)):
        done = docker(*words)
        assert done.returncode == 0, done.stderr
    return archive


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start the machines, and wait until both agents are up."""
    folder = tmp_path_factory.mktemp("archives")
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    with ExitStack() as stack:
        field = Field(stack.enter_context(Lab(folder / "lab")), folder)
        stack.callback(field.registry.stop)
        builder, ci = field.boot("builder"), field.boot("ci")
        field.static_groups({"builders": builder, "ci": ci})
        field.controller.start()
        office = stack.enter_context(dockerd_on(field.lab.machine("office", "10.77.0.50")))
        sockets = {agent.name: stack.enter_context(dockerd_on(agent)).socket for agent in (builder, ci)}
        storage = stack.enter_context(tempfile.TemporaryDirectory(prefix="images-"))  # short, as podman requires
        for agent in (builder, ci):
            field.controller.wait_phase(agent.name, "up")
        original = build_in_office(office, folder / "office")
        yield Machines(field, office, builder, ci, sockets, original, Path(storage))


def ways(client: str) -> tuple[str, str]:
    """Return a client's commands to push an archive, and to pull an image and save it."""
    blocks = DOCUMENT.blocks(f"Archives with {client}")
    if client == "docker":
        blocks = blocks[1:]  # the first saves the image, as `build_in_office` has
    return blocks[0], blocks[1]


def reported_digest(machines: Machines, client: str, output: str, folder: Path) -> str:
    """Return the digest of the image that a client has pulled, as it reports it."""
    if client == "docker":
        found = re.search(r"Digest: (sha256:[0-9a-f]{64})", output)
        assert found is not None, output
        return found[1]
    if client == "podman":
        shown = machines.run(machines.ci, f"podman image inspect --format '{{{{.Digest}}}}' {IMAGE}", folder)
    else:
        shown = machines.run(machines.ci, DOCUMENT.blocks("Archives with skopeo")[2], folder)
    return shown.stdout.strip()


@pytest.mark.parametrize("pushes_with", CLIENTS)
def test_an_archive_crosses_two_tunnels_unchanged(machines: Machines, tmp_path: Path, pushes_with: str) -> None:
    """Whichever client pushes and pulls: layers, configuration and name are equal bytes, and the digest stays."""
    original = Archived.read(machines.original)
    pushed = machines.run(machines.builder, f"cp {machines.original} app.tar\n{ways(pushes_with)[0]}", tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    served = machines.served_digest()

    for client in CLIENTS:
        folder = tmp_path / client
        pulled = machines.run(machines.ci, ways(client)[1], folder)
        assert pulled.returncode == 0, pulled.stderr
        loaded = machines.office("load", "-i", str(folder / "pulled.tar"))
        found = machines.office("image", "inspect", "--format", "{{.Id}}", IMAGE)
        digest = reported_digest(machines, client, pulled.stdout, folder)
        machines.office("rmi", IMAGE)
        machines.forget(machines.ci, client, folder)

        assert Archived.read(folder / "pulled.tar") == original
        assert digest == served, client
        assert f"Loaded image: {IMAGE}" in loaded.stdout
        assert found.stdout.strip() == f"sha256:{original.config}"


@pytest.mark.parametrize("client", CLIENTS)
def test_an_agent_of_another_group_may_not_push_an_archive(machines: Machines, tmp_path: Path, client: str) -> None:
    """Each client prints the gate's refusal, and the registry keeps what it has."""
    first = machines.run(machines.builder, f"cp {machines.original} app.tar\n{ways('skopeo')[0]}", tmp_path)
    before = machines.served_digest()

    refused = machines.run(machines.ci, ways(client)[0], tmp_path)

    assert first.returncode == 0, first.stderr
    assert refused.returncode != 0
    assert "tunnelmgr: group ci may not push team/app" in refused.stderr
    assert machines.served_digest() == before


def test_podman_and_skopeo_need_no_option_with_the_documented_file(machines: Machines, tmp_path: Path) -> None:
    """Without the file in registries.conf.d they try TLS and fail; with it, plain HTTP works."""
    pull = f"podman pull {IMAGE}\nskopeo inspect docker://{IMAGE}"
    pushed = machines.run(machines.builder, f"cp {machines.original} app.tar\n{ways('skopeo')[0]}", tmp_path)
    (file,) = DOCUMENT.blocks("Plain HTTP")

    without = machines.run(machines.ci, pull, tmp_path, with_own_etc=True)
    machines.ci.run(["tee", "/etc/containers/registries.conf.d/50-tunnelmgr.conf"], feed=file, check=True)
    together = machines.run(machines.ci, pull, tmp_path, with_own_etc=True)

    assert pushed.returncode == 0, pushed.stderr
    assert without.returncode != 0
    assert "this is plain HTTP" in without.stderr or "HTTP response to HTTPS client" in without.stderr
    assert together.returncode == 0, together.stderr
