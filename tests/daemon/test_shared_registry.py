"""One member's part in verifying that the registries are one, with a real registry and the other members' words."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.registry import Registry
from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.registry_sharing import INTERVAL, RETRY, CheckUpload, Sharing, SharingReport, SharingState
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.core.world import World
from tunnelmgr.daemon import shared_registry
from tunnelmgr.daemon.shared_registry import SharedRegistry
from tunnelmgr.errors import StoreError
from tunnelmgr.gate.upload_check import start_upload

pytestmark = pytest.mark.acceptance

OTHER = Endpoint("127.0.0.1", 1)
"""The target of a forward that is not a registry."""


@dataclass
class MemoryDatabase:
    """The uploads and reports in memory; it fails if the test says so."""

    uploads: dict[str, CheckUpload] = field(default_factory=dict)
    reports: dict[tuple[str, str, str], SharingReport] = field(default_factory=dict)
    announced: list[CheckUpload] = field(default_factory=list)
    on_report: Callable[[], object] = lambda: None
    failing: bool = False
    failures: int = 0

    def start_over(self) -> None:
        """Forget the reports of member `one`."""
        self._fail()
        self.reports = {key: report for key, report in self.reports.items() if key[0] != "one"}

    def read(self) -> SharingState:
        """Return everything."""
        self._fail()
        return SharingState(tuple(self.uploads.values()), tuple(self.reports.values()))

    def announce(self, upload: CheckUpload) -> None:
        """Keep an upload."""
        self._fail()
        self.uploads[upload.writer] = upload
        self.announced.append(upload)

    def report(self, report: SharingReport) -> None:
        """Keep a report."""
        self._fail()
        self.on_report()
        self.reports[report.member, report.writer, report.registry] = report

    def said(self, writer: str) -> Sharing | None:
        """Return what member `one` has reported about another one."""
        return next((one.sharing for key, one in self.reports.items() if key[:2] == ("one", writer)), None)

    def _fail(self) -> None:
        if self.failing:
            self.failures += 1
            raise StoreError("the database is away")


@dataclass
class Rig:
    """A member `one` with a real registry; the test speaks for member `two`."""

    registry: Endpoint
    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    cluster: Cluster = field(default_factory=lambda: Cluster("one", {name: Member(name) for name in ("one", "two")}))
    now: float = 0.0
    turns: int = 0
    forwards: tuple[Forward, ...] = ()

    def __post_init__(self) -> None:
        self.forwards = (Forward("registry", (), self.registry, "registry"), Forward("cache", (), OTHER, "tcp"))
        self.member = SharedRegistry("one", self.database, self, self, lambda: self.now)

    @property
    def world(self) -> World:
        """The world with the cluster; each turn looks at it once."""
        self.turns += 1
        return World(cluster=self.cluster)

    def two_reports(self, sharing: Sharing) -> None:
        """Let member `two` report about the upload in progress."""
        upload = self.database.uploads["one"]
        self.database.report(SharingReport("two", "one", upload.registry, upload.id, sharing))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the member."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.member.run(), name="shared registry")
            yield
            task.cancel()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Run a registry, and let turns come quickly."""
    monkeypatch.setattr(shared_registry, "TURN", 0.02)
    with Registry(None, tmp_path / "registry", port=free_port()) as registry:
        yield Rig(Endpoint("127.0.0.1", registry.port))


async def test_an_upload_is_announced_again_after_the_interval(rig: Rig) -> None:
    """Once the other member has seen it, `INTERVAL` seconds pass; the upload itself stays the same."""
    async with rig.running():
        await until(lambda: len(rig.database.announced) == 1)
        rig.two_reports(Sharing.YES)
        rig.now += RETRY
        await turns(rig)
        assert len(rig.database.announced) == 1

        rig.now += INTERVAL

        await until(lambda: len(rig.database.announced) == 2)
        first, second = rig.database.announced
        assert (first.id == second.id, first.location == second.location) == (False, True)
        assert [report.sharing for report in rig.member.reports] == [Sharing.YES, Sharing.YES]


async def test_a_problem_is_verified_again_after_a_short_while(rig: Rig) -> None:
    """While the other member's registry differs, the upload is announced every `RETRY` seconds."""
    async with rig.running():
        await until(lambda: len(rig.database.announced) == 1)
        rig.two_reports(Sharing.OTHER_SECRET)
        await turns(rig)
        assert len(rig.database.announced) == 1

        rig.now += RETRY

        await until(lambda: len(rig.database.announced) == 2)


async def test_a_change_of_the_configuration_is_followed_by_a_verification(rig: Rig) -> None:
    """A reload announces the upload at once, although all is well."""
    async with rig.running():
        await until(lambda: len(rig.database.announced) == 1)
        rig.two_reports(Sharing.YES)

        rig.member.check_soon()

        await until(lambda: len(rig.database.announced) == 2)


async def test_a_change_during_a_verification_is_followed_by_another_one(rig: Rig) -> None:
    """The verification under way may have started with the configuration before."""
    loop = asyncio.get_running_loop()

    def change_once() -> None:
        rig.database.on_report = lambda: None
        loop.call_soon_threadsafe(rig.member.check_soon)

    rig.database.on_report = change_once
    async with rig.running():
        await until(lambda: len(rig.database.announced) == 2)


async def test_a_member_that_starts_again_continues_with_its_upload(rig: Rig) -> None:
    """A restart leaves no further upload in the registry; what the process before it has reported is forgotten."""
    location = start_upload(rig.registry).location
    rig.database.uploads["one"] = CheckUpload("0", "one", str(rig.registry), location)
    rig.database.report(SharingReport("one", "two", str(rig.registry), "0", Sharing.OTHER_STORAGE))

    async with rig.running():
        await until(lambda: len(rig.database.announced) == 1)

    assert rig.database.announced[0].location == location
    assert rig.database.said("two") is None


async def test_only_registries_are_asked(rig: Rig) -> None:
    """A forward of protocol `tcp` leads to something else."""
    async with rig.running():
        await until(lambda: len(rig.database.announced) == 1)
        await turns(rig)

    assert {report.registry for report in rig.database.reports.values()} == {str(rig.registry)}


async def test_uploads_of_the_other_member_are_answered_once(rig: Rig) -> None:
    """The registry is asked for the upload; what it says is reported."""
    started = start_upload(rig.registry)
    rig.database.uploads["two"] = CheckUpload("2", "two", str(rig.registry), started.location)

    async with rig.running():
        await until(lambda: rig.database.said("two") is Sharing.YES)


async def test_a_database_that_is_away_only_delays(rig: Rig) -> None:
    """Without the database the last reports stand; with it, the verification continues."""
    rig.database.failing = True
    async with rig.running():
        await until(lambda: rig.database.failures > 2)
        rig.database.failing = False
        await until(lambda: len(rig.database.announced) == 1)
        reports = rig.member.reports

        rig.database.failing = True
        failures = rig.database.failures
        await until(lambda: rig.database.failures > failures + 2)

        assert rig.member.reports == reports


async def test_nothing_is_verified_before_this_member_has_joined(rig: Rig) -> None:
    """Who has to report is unknown until the members are known."""
    rig.cluster = Cluster("one")
    async with rig.running():
        await turns(rig)
        assert rig.database.announced == []

        rig.cluster = Cluster("one", {"one": Member("one")})

        await until(lambda: len(rig.database.announced) == 1)


async def turns(rig: Rig) -> None:
    """Wait until the member has had three more turns."""
    seen = rig.turns
    await until(lambda: rig.turns > seen + 2)
