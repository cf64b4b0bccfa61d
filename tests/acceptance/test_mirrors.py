"""Each client pulls an image of Docker Hub by its usual name, through a tunnel, as docs/mirrors.md says.

Docker Hub is a docker-registry that only the pull-through cache reaches: what an agent has came through the tunnel.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab.containerd import containerd_on
from lab.docker import dockerd_on
from lab.images import digest_of, skopeo_copy
from lab.processes import until
from tests.acceptance.document_commands import run_commands
from tests.acceptance.mirror_site import DOCUMENT, MirrorSite, mirror_site
from tests.acceptance.test_builds import build, context, layers
from tests.acceptance.test_image_archives import ENGINE, STORAGE

pytestmark = pytest.mark.acceptance

ALPINE: Final = "docker.io/library/alpine:3.20"
PULLED: Final = ("pull", "library/alpine", "pull library/*")
POLICY: Final = '{"default": [{"type": "insecureAcceptAnything"}]}'
"""What Debian's package golang-github-containers-common installs as /etc/containers/policy.json."""
CHILD: Final = "localhost:5000/team/child:1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorSite]:
    """Start the registries, the controller and the agent once."""
    with mirror_site(tmp_path_factory.mktemp("mirrors")) as site:
        yield site


def audited(site: MirrorSite, since: int, wanted: tuple[str, str, str]) -> bool:
    """Wait until a request through the forward of the cache is audited."""
    return until(lambda: wanted in site.requests(since), f"{wanted} is audited")


def test_docker_pulls_and_builds_by_the_usual_name(site: MirrorSite, tmp_path: Path) -> None:
    """With the documented daemon.json, `docker pull alpine:3.20` and `FROM alpine:3.20` come through the tunnel."""
    settings = tmp_path / "daemon.json"
    settings.write_text(DOCUMENT.blocks("docker")[0])
    since = len(site.requests())
    with dockerd_on(site.agent, f"--config-file={settings}") as docker:
        built = build(site.agent, docker, context(tmp_path / "context", "FROM alpine:3.20\nCOPY hello /hello\n"))
        child = layers(docker, CHILD)
        pulled = docker("pull", "alpine:3.20")
        base = layers(docker, "alpine:3.20")
        docker("tag", "alpine:3.20", "localhost:5001/team/app:1")
        pushed = docker("push", "localhost:5001/team/app:1")
        refused = docker("pull", "stranger/app:1")

    assert "moby.buildkit.trace" in built
    assert child[:-1] == base
    assert f"Digest: {site.digest}" in pulled.stdout, pulled.stderr
    assert "takes no push of team/app; use localhost:5000 for that" in pushed.stdout + pushed.stderr
    assert refused.returncode != 0
    assert audited(site, since, PULLED)
    assert audited(site, since, ("pull", "stranger/app", "default"))
    assert audited(site, since, ("push", "team/app", "upstream proxy"))


def test_containerd_pulls_by_the_usual_name(site: MirrorSite, tmp_path: Path) -> None:
    """With the documented hosts.toml, `ctr` pulls from the mirror, which refuses it an image of another registry."""
    hosts, command = DOCUMENT.blocks("containerd")
    for registry in ("docker.io", "quay.io"):
        folder = tmp_path / "certs.d" / registry
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(hosts.replace("registry-1.docker.io", "registry.invalid"))
    since = len(site.requests())
    words = command.replace("/etc/containerd/certs.d", str(tmp_path / "certs.d")).split()[1:]
    with containerd_on(site.agent) as containerd:
        options = ["--snapshotter", "native"]  # overlayfs cannot be on another overlay
        pulled = containerd(*words[:2], *options, *words[2:])
        listed = containerd("images", "list")
        other = [word.replace("docker.io/library", "quay.io/library") for word in words]
        refused = containerd(*other[:2], *options, *other[2:])

    assert pulled.returncode == 0, pulled.stderr
    assert f"{ALPINE} " in listed.stdout
    assert site.digest in listed.stdout
    assert refused.returncode != 0
    assert audited(site, since, PULLED)
    assert audited(site, since, ("pull", "library/alpine", "namespace docker.io"))


def test_podman_buildah_and_skopeo_pull_by_the_usual_name(site: MirrorSite, tmp_path: Path) -> None:
    """With the documented file in registries.conf.d, these clients get the image from the mirror, with its digest."""
    mirror, commands = DOCUMENT.blocks("podman, buildah and skopeo")
    for name, text in (("registries.conf.d/50-mirror.conf", mirror), ("policy.json", POLICY)):
        site.agent.run(["mkdir", "-p", f"/etc/containers/{Path(name).parent}"], check=True)
        site.agent.run(["tee", f"/etc/containers/{name}"], feed=text, check=True)
    since = len(site.requests())
    with tempfile.TemporaryDirectory(prefix="images-") as place:  # short, as podman requires
        Path(place, "storage.conf").write_text(STORAGE.format(place=place))
        Path(place, "containers.conf").write_text(ENGINE)
        environment = {
            "CONTAINERS_STORAGE_CONF": f"{place}/storage.conf",
            "CONTAINERS_CONF": f"{place}/containers.conf",
        }
        by_podman, by_buildah, by_skopeo = commands.splitlines()
        pulled = run_commands(site.agent, tmp_path, f"{by_podman}\npodman image inspect {ALPINE}", environment)
        other_store = environment | {"CONTAINERS_STORAGE_CONF": f"{place}/other.conf"}
        Path(place, "other.conf").write_text(STORAGE.format(place=f"{place}/other"))
        built = run_commands(site.agent, tmp_path, by_buildah, other_store)
        copied = run_commands(site.agent, tmp_path, by_skopeo, environment)

    assert (pulled.returncode, built.returncode, copied.returncode) == (0, 0, 0), pulled.stderr + built.stderr
    assert json.loads(pulled.stdout.partition("\n")[2])[0]["Digest"] == site.digest
    assert digest_of(None, f"dir:{tmp_path / 'alpine'}") == site.digest
    assert audited(site, since, PULLED)


def test_an_image_is_pulled_by_the_caches_own_name_without_any_configuration(site: MirrorSite, tmp_path: Path) -> None:
    """The cache serves what it has while the other registry is away, and says which image it does not have."""
    target = f"oci:{tmp_path / 'alpine'}:1"
    first = skopeo_copy(site.agent, "docker://localhost:5001/library/alpine:3.20", target)
    site.hub.stop()
    try:
        again = skopeo_copy(site.agent, "docker://localhost:5001/library/alpine:3.20", f"oci:{tmp_path / 'again'}:1")
        absent = skopeo_copy(site.agent, "docker://localhost:5001/library/absent:1", f"oci:{tmp_path / 'absent'}:1")
        healthy = site.controller.client.status()["registry"]["reachable"]
    finally:
        site.hub.start()

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert digest_of(None, f"oci:{tmp_path / 'again'}:1") == site.digest
    assert "manifest unknown" in absent.stderr
    assert healthy
