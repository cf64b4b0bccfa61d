"""A writer and two read-only replicas on one bucket: pulls are served near the agents, pushes reach the writer."""

import re
import sys
from collections.abc import Iterator

import pytest

from lab.docker import dockerd_on
from lab.images import make_image, skopeo_copy
from lab.network import Lab
from lab.processes import until
from lab.registry import Registry
from tests.acceptance.replica_site import BUCKET, ReplicaSite

pytestmark = pytest.mark.acceptance

WRITES = re.compile(r'"(?:POST|PUT|PATCH|DELETE) ')
PUT_OBJECT = """
import os, sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1])
s3.put_object(Bucket=sys.argv[2], Key="docker/planted", Body=b"x")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSite]:
    """Start the registries, their controllers and their agents once; each test has repositories of its own."""
    folder = tmp_path_factory.mktemp("replicas")
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    with Lab(folder / "lab") as lab:
        site = ReplicaSite(lab, folder)
        try:
            yield site.start()
        finally:
            site.stop()


def test_a_push_at_the_writer_is_pulled_at_the_replicas(site: ReplicaSite) -> None:
    """An agent near each replica pulls the image with the digest that was pushed, from its own replica."""
    pushed = site.push(site.builder, "team/app")

    pulled = [site.pull(agent, "team/app") for agent in (site.near_a, site.near_b)]

    assert pulled == [pushed, pushed]
    for side in (site.a, site.b):
        assert f'"GET /v2/team/app/manifests/{pushed}' in side.registry.log() or (
            '"GET /v2/team/app/manifests/1 ' in side.registry.log()
        )


def test_a_push_at_a_replica_reaches_the_writer_through_its_tunnel(site: ReplicaSite) -> None:
    """Skopeo and docker push at a replica: the writer stores it, the replica gets reads only, and all have it."""
    pushed = site.push(site.near_a, "team/through")
    with dockerd_on(site.near_a) as docker:
        image = "localhost:5000/team/through:1"
        docker("pull", image)
        docker("tag", image, "localhost:5000/team/by-docker:1")
        again = docker("push", "localhost:5000/team/by-docker:1")

    assert again.returncode == 0, again.stderr
    assert [site.pull(agent, "team/through") for agent in (site.builder, site.near_a, site.near_b)] == [pushed] * 3
    assert '"PUT /v2/team/through/manifests/' in site.writer.registry.log()
    assert not WRITES.search(site.a.registry.log())
    assert '"agent": "static:near-a"' in site.a.controller.log()
    assert '"agent": "static:replica-a"' in site.writer.controller.log()


def test_a_delete_at_a_replica_reaches_the_writer(site: ReplicaSite) -> None:
    """What an agent near a replica deletes is gone at every registry."""
    digest = site.push(site.near_a, "team/gone")

    deleted = site.near_a.run(
        [
            *("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE"),
            f"http://localhost:5000/v2/team/gone/manifests/{digest}",
        ]
    )

    assert deleted.stdout == "202"
    for agent in (site.builder, site.near_a, site.near_b):
        asked = agent.run(["skopeo", "inspect", "--tls-verify=false", "docker://localhost:5000/team/gone:1"])
        assert "manifest unknown" in asked.stderr


def test_without_the_writers_tunnel_pulls_continue_and_pushes_say_why(site: ReplicaSite) -> None:
    """While the writer's controller is stopped, a push at the replica gets a clear 503; later, pushes work again."""
    pushed = site.push(site.near_a, "team/outage")
    layout = make_image(site.folder / "refused", layers=1)

    assert site.writer.controller.stop() == 0
    refused = skopeo_copy(site.near_a, layout, "docker://localhost:5000/team/outage:2")
    pulled = site.pull(site.near_a, "team/outage")
    checked = site.a.controller.command("check")
    site.writer.controller.start()
    site.writer.controller.wait_phase("replica-a", "up")
    again = skopeo_copy(site.near_a, layout, "docker://localhost:5000/team/outage:2")

    assert refused.returncode != 0
    assert "tunnelmgr: the registry at 127.0.0.1:5000 cannot be reached" in refused.stderr
    assert pulled == pushed
    assert "registry for pushes" in checked.stdout
    assert checked.returncode == 1
    assert again.returncode == 0, again.stderr


def test_a_replica_without_a_way_to_the_writer_names_it(site: ReplicaSite) -> None:
    """Docker and skopeo print where to push, and the replica's registry gets no such request."""
    site.push(site.builder, "team/named")
    layout = make_image(site.folder / "named", layers=1)
    with dockerd_on(site.near_b) as docker:
        docker("pull", "localhost:5000/team/named:1")
        docker("tag", "localhost:5000/team/named:1", "localhost:5000/team/named:2")
        by_docker = docker("push", "localhost:5000/team/named:2")

    by_skopeo = skopeo_copy(site.near_b, layout, "docker://localhost:5000/team/named:2")

    for refused in (by_docker, by_skopeo):
        assert refused.returncode != 0
        assert "it is a read-only replica; use registry-1 for that" in refused.stderr
    assert not WRITES.search(site.b.registry.log())


def test_a_replicas_credential_cannot_write(site: ReplicaSite) -> None:
    """With a replica's credential, not even a registry without the read-only setting writes to the bucket."""
    for _ in ("an image that loses its tag, and so is garbage", "the one that has it now"):
        site.push(site.builder, "team/kept")
    layout = make_image(site.folder / "planted", layers=1)
    before = site.s3.objects()
    user, machine = site.users["replica"], site.b.machine

    with site.b.make_registry(read_only=False, port=5600) as open_replica:
        readable = skopeo_copy(machine, _at(open_replica, "team/kept"), f"dir:{site.folder / 'kept'}")
        pushed = skopeo_copy(machine, layout, _at(open_replica, "team/planted"))
        collected = open_replica.collect_garbage("--delete-untagged")
    direct = machine.run([sys.executable, "-c", PUT_OBJECT, user.endpoint, BUCKET], env=user.environment, timeout=60)

    assert readable.returncode == 0, readable.stderr
    assert "500 Internal Server Error" in pushed.stderr
    assert "AccessDenied" in direct.stderr
    assert site.s3.objects() == before
    assert [request for request in site.s3.denied() if request.startswith("PUT ")]
    assert "blob eligible for deletion" in collected.stdout, "there was garbage"


def test_the_writers_credential_can_write_where_the_replicas_cannot(site: ReplicaSite) -> None:
    """The same registry on the replica's machine takes the same push with the writer's credential."""
    layout = make_image(site.folder / "allowed", layers=1)

    with site.b.make_registry(read_only=False, port=5601, user=site.users["writer"]) as open_writer:
        pushed = skopeo_copy(site.b.machine, layout, _at(open_writer, "team/allowed"))

    assert pushed.returncode == 0, pushed.stderr


def test_garbage_is_collected_while_the_writer_is_read_only(site: ReplicaSite) -> None:
    """Pushes are refused meanwhile with a clear error, pulls continue, storage is freed, and nothing tagged is lost."""
    old = site.push(site.builder, "team/collected")
    kept = site.push(site.builder, "team/collected")
    layout = make_image(site.folder / "meanwhile", layers=1)
    before = site.s3.objects()

    site.writer.registry.stop()
    with site.writer.make_registry(read_only=True) as maintained:
        refused = [
            skopeo_copy(agent, layout, "docker://localhost:5000/team/collected:2")
            for agent in (site.builder, site.near_a)
        ]
        collected = maintained.collect_garbage("--delete-untagged")
        pulled = [site.pull(agent, "team/collected") for agent in (site.builder, site.near_a, site.near_b)]
    site.writer.registry.start()
    until(lambda: site.builder.run(["curl", "-fsS", "http://localhost:5000/v2/"]).returncode == 0, "the writer answers")
    after = skopeo_copy(site.near_a, layout, "docker://localhost:5000/team/collected:2")

    for push in refused:
        assert push.returncode != 0
        assert "does not allow POST here: it is a read-only replica or under maintenance" in push.stderr
    assert collected.returncode == 0, collected.stderr
    freed = before.keys() - site.s3.objects().keys()
    assert any(old.removeprefix("sha256:") in key for key in freed)
    assert not any(kept.removeprefix("sha256:") in key for key in freed)
    assert pulled == [kept] * 3
    assert after.returncode == 0, after.stderr


def _at(registry: Registry, repository: str) -> str:
    return f"docker://localhost:{registry.port}/{repository}:1"
