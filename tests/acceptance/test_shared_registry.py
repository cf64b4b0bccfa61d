"""Two members of a cluster on two machines, each with a real registry: they notice if the registries are not one."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import LabCluster
from lab.network import Lab
from lab.postgres import Postgres
from lab.processes import until
from lab.registry import Registry
from tests.acceptance.conftest import GROUPS
from tunnelmgr.core.registry_sharing import REPOSITORY

pytestmark = pytest.mark.acceptance

SAME = ("images", "lab")
"""The storage and the `http.secret` of the first member's registry."""


class TwoRegistries:
    """Two members, each on a machine of its own, and the registries of these machines."""

    def __init__(self, lab: Lab, database: Postgres, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        machines = [lab.controller, lab.machine("second", "10.77.0.2")]
        self.cluster = LabCluster(machines, database.url, folder / "members")
        self.one, self.two = self.cluster.members
        self._registries = [self._registry(0, *SAME)]
        self.cluster.configure(GROUPS)

    def start(self, storage: str, http_secret: str) -> None:
        """Start both members; the second one's registry has this storage and this secret."""
        self._registries.append(self._registry(1, storage, http_secret))
        for registry in self._registries:
            registry.start()
        self.cluster.start()

    def correct(self) -> None:
        """Replace the second member's registry by one that is the same as the first."""
        self._registries[1].stop()
        self._registries[1] = self._registry(1, *SAME).start()

    def sees(self) -> dict[str, Any]:
        """Return what each member's registry says of the other's uploads, by the word of the first member."""
        members = self.one.client.status()["cluster"]["members"]
        return {name: said for one in members for name, said in one["registry"]["sees_uploads_of"].items()}

    def until_both_see(self, said: str) -> None:
        """Wait until both registries say the same of each other's uploads."""
        expected = {"member-0": said, "member-1": said}
        until(lambda: self.sees() == expected, f"both report {said!r}", timeout=40, pause=0.2)

    def uploads(self) -> list[Path]:
        """Return the uploads in the first member's storage."""
        return list(self.folder.glob(f"images/docker/registry/v2/repositories/{REPOSITORY}/_uploads/*"))

    def _registry(self, number: int, storage: str, http_secret: str) -> Registry:
        machine = self.cluster.members[number].machine
        return Registry(machine, self.folder / f"registry-{number}", storage=self.folder / storage, secret=http_secret)


@pytest.fixture
def registries(lab: Lab, tmp_path: Path) -> Iterator[TwoRegistries]:
    """Run a database; end the members with the test."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "server") as database:
            site = TwoRegistries(lab, database, tmp_path)
            try:
                yield site
            finally:
                site.cluster.kill()


def test_registries_that_are_one_are_no_problem(registries: TwoRegistries) -> None:
    """Both members see each other's uploads, `members` and `check` succeed, and each member has one upload only."""
    registries.start(*SAME)

    registries.until_both_see("yes")
    shown, checked = registries.one.command("members"), registries.two.command("check", "--json")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("shared") == 2
    found = [
        finding["message"] for finding in json.loads(checked.stdout)["checks"] if finding["check"] == "shared registry"
    ]
    assert found == ["one with that of member-0"]
    assert len(registries.uploads()) == 2


@pytest.mark.parametrize(
    ("storage", "secret", "said", "message"),
    [
        ("images", "other", "other-secret", "another http.secret"),
        ("elsewhere", "lab", "other-storage", "another storage"),
    ],
    ids=["secret", "storage"],
)
def test_registries_that_are_not_one_are_a_problem_until_they_are(
    registries: TwoRegistries, storage: str, secret: str, said: str, message: str
) -> None:
    """`members`, `status`, `check` and the log name the difference; once it is gone, so is the problem."""
    registries.start(storage, secret)
    registries.until_both_see(said)
    outputs = [registries.two.command(name) for name in ("members", "status", "check")]
    logged = [
        line for line in map(json.loads, registries.one.log().splitlines()) if line["event"] == "registry not shared"
    ]

    registries.correct()
    registries.until_both_see("yes")

    assert [output.returncode for output in outputs] == [1, 1, 1]
    assert message in " ".join(outputs[0].stdout.split())
    assert message in " ".join(outputs[1].stdout.split())
    assert "the registry of member-0" in " ".join(outputs[2].stdout.split())
    assert [(line["member"], line["sharing"], line["level"]) for line in logged] == [("member-1", said, "error")]
    assert registries.one.command("members").returncode == 0
