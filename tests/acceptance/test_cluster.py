"""Two members of a cluster with a real PostgreSQL, sshd, registry and clients: what an agent notices of a handover."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.cluster import LabCluster
from lab.controller import LabController
from lab.network import Lab
from lab.postgres import Postgres
from lab.processes import until
from tests.acceptance.conftest import GROUPS, Field
from tests.acceptance.test_crash import IN_FLIGHT, pull_slowly, push_big_layer
from tests.acceptance.test_uploads import Uploader

pytestmark = pytest.mark.acceptance


class ClusterField(Field):
    """A field with two members; `controller` is the one that holds the agent."""

    def __init__(self, lab: Lab, folder: Path, cluster: LabCluster) -> None:
        super().__init__(lab, folder)
        self.cluster = cluster
        self.controller = cluster.members[0]

    def up(self, *agents: LabAgent, groups: str = GROUPS, drain: str = "20s") -> None:
        """Start both members, and wait until the agents are up."""
        text = f'{groups}\n[[source]]\nname = "office"\ntype = "static"\ngroup = "builders"\ntrust = ["pinned"]\n'
        for agent in agents:
            text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\nhost_key = "{agent.host_key}"\n'
        self.cluster.configure(text, probe_interval="1s")
        for member in self.cluster.members:
            own = f'drain = "{drain}"\naudit = "{member.folder}/audit.jsonl"'
            member.file.write_text(member.file.read_text().replace('drain = "20s"', own))
        self.cluster.start()
        self.controller = self.cluster.holder(agents[0].name)

    @property
    def other(self) -> LabController:
        """The member that does not hold the agent."""
        return next(member for member in self.cluster.members if member is not self.controller)

    def who_answers(self, agent: LabAgent) -> str:
        """Return the name of the controller that answers on the agent."""
        got = agent.run(["curl", "-fsS", "-m", "5", "http://localhost:5000/.well-known/tunnelmgr"], timeout=10)
        return str(json.loads(got.stdout)["controller"]) if got.returncode == 0 else ""


def audited_by(field: ClusterField) -> set[str]:
    """Verify the audit logs of both members with one command, and return the members that they name."""
    logs = [str(member.folder / "audit.jsonl") for member in field.cluster.members]
    verified = field.other.command("audit", "verify", "--json", *logs)
    assert verified.returncode == 0, verified.stdout
    return {file["controller"] for file in json.loads(verified.stdout)["files"] if file["after"] == 0}


@pytest.fixture
def cluster_field(lab: Lab, tmp_path: Path) -> Iterator[ClusterField]:
    """Run a database; end the members with the test."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "server") as database:
            cluster = LabCluster([lab.controller] * 2, database.url, tmp_path / "members")
            try:
                yield ClusterField(lab, tmp_path, cluster)
            finally:
                cluster.kill()


def test_a_pull_continues_through_a_handover_while_the_other_member_answers(cluster_field: ClusterField) -> None:
    """A stop of the holder: new requests are answered by the other member, and the pull in progress arrives whole."""
    field = cluster_field
    agent = field.boot("agent")
    field.up(agent)
    digest = push_big_layer(field, agent, IN_FLIGHT)
    name = field.who_answers(agent)
    pull = pull_slowly(field, agent, digest, "10M")

    field.controller.terminate()
    until(lambda: field.who_answers(agent) not in {"", name}, "the other member answers", timeout=20)
    assert pull.poll() is None, "the pull is still in progress"

    assert pull.wait(60) == 0
    content = (field.folder / "slow").read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    assert field.controller.stop(patience=30) == 0
    assert audited_by(field) == {"member-0", "member-1"}


@pytest.mark.parametrize("end", [LabController.stop, LabController.kill], ids=["SIGTERM", "SIGKILL"])
def test_an_upload_continues_through_another_member(
    cluster_field: ClusterField, end: Callable[[LabController], object]
) -> None:
    """The location of an upload is valid at every member, so that an upload outlives the one that it began with."""
    field = cluster_field
    agent = field.boot("agent")
    field.up(agent)
    name = field.who_answers(agent)
    pieces = os.urandom(300_000), os.urandom(200_000)
    digest = f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    upload = Uploader(field, agent)
    before = [upload.send("POST"), upload.send("PATCH", pieces[0])]

    end(field.controller)
    until(lambda: field.who_answers(agent) not in {"", name}, "the other member answers", timeout=30)

    after = [upload.send("PATCH", pieces[1]), upload.send("PUT", query=f"&digest={digest}")]
    assert (before, after) == ([202, 202], [202, 201])
