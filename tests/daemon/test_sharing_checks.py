"""What `check` says of this machine's registry, with a real database and a real registry."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from lab.processes import until
from lab.registry import Registry
from tests.daemon.conftest import Site
from tests.ssh.ssh_server import free_port
from tests.store.conftest import server, url
from tunnelmgr.config import Config, load
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.registry_sharing import Sharing, SharingReport
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.daemon import sharing_checks
from tunnelmgr.daemon.checks import check
from tunnelmgr.daemon.sharing_checks import SharingCheck, check_sharing
from tunnelmgr.store.cluster_database import ClusterDatabase
from tunnelmgr.store.registry_proofs import RegistryProofs

__all__ = ["server", "url"]

pytestmark = pytest.mark.acceptance


@pytest.fixture
def configured(
    site: Site, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Config]]:
    """Return a function that starts a registry and returns a configuration with it; there is one other member."""
    monkeypatch.setattr(sharing_checks, "REPORTS_WITHIN", 0.5)
    with ExitStack() as stack:
        stack.enter_context(closing(other := ClusterDatabase(url, Member("other"))))
        other.join()

        def configured(*, read_only: bool = False) -> Config:
            registry = stack.enter_context(Registry(None, tmp_path / "registry", port=free_port(), read_only=read_only))
            endpoint = Endpoint("127.0.0.1", registry.port)
            return load(replace(site, state=url, registry=endpoint).write())

        yield configured


def report(url: str, sharing: Sharing) -> threading.Thread:
    """Let the other member report about the first upload that is announced."""

    def answer() -> None:
        with closing(RegistryProofs(url, "other")) as proofs:
            (upload,) = until(lambda: proofs.read().uploads, "an upload is announced")
            proofs.report(SharingReport("other", upload.writer, upload.registry, upload.id, sharing))

    thread = threading.Thread(target=answer, name="other member")
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("sharing", "found"),
    [
        (Sharing.YES, SharingCheck(shared=["other"])),
        (
            Sharing.NO_ANSWER,
            SharingCheck(problems=["the registry of other did not answer when asked for an upload of this machine"]),
        ),
    ],
)
def test_what_the_other_member_reports_is_the_result(
    configured: Callable[..., Config], url: str, sharing: Sharing, found: SharingCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that has the upload is named; the others are problems."""
    monkeypatch.setattr(sharing_checks, "REPORTS_WITHIN", 10.0)
    config = configured()
    answering = report(url, sharing)

    assert check_sharing(config) == found
    answering.join()


def test_a_member_that_does_not_report_is_a_note(configured: Callable[..., Config]) -> None:
    """A member of an older version never reports, which is not a failure."""
    assert check_sharing(configured()) == SharingCheck(notes=["other has not reported within 0.5 s"])


def test_a_second_check_uses_the_same_upload(configured: Callable[..., Config], url: str) -> None:
    """However often `check` is run, the registry has one upload of this machine."""
    config = configured()

    check_sharing(config)
    with closing(RegistryProofs(url, "test")) as proofs:
        (first,) = proofs.read().uploads
        check_sharing(config)
        (second,) = proofs.read().uploads

    assert (first.id == second.id, first.location == second.location) == (False, True)


async def test_a_read_only_registry_is_a_note(configured: Callable[..., Config]) -> None:
    """It begins no upload, so that only the running member can verify it."""
    config = configured(read_only=True)

    (found,) = [finding for finding in await check(config) if finding.check == "shared registry"]

    assert (found.result, found.message.partition(";")[0]) == ("note", f"{config.forwards()[0].target} is read-only")


def test_a_registry_that_begins_no_upload_is_a_problem(configured: Callable[..., Config], site: Site) -> None:
    """The message is that of the registry's failure."""
    configured()
    config = load(replace(site, state=load(site.file).controller.state, registry=Endpoint("127.0.0.1", 1)).write())

    assert check_sharing(config).problems == ["127.0.0.1:1: Connection refused"]


def test_without_other_members_nothing_is_checked(site: Site, url: str) -> None:
    """The first member of a cluster has nobody to share with, and perhaps no tables yet."""
    assert check_sharing(load(replace(site, state=url).write())) == SharingCheck()


def test_a_database_that_does_not_answer_is_a_note(site: Site, tmp_path: Path) -> None:
    """The check of the state has failed already."""
    config = load(replace(site, state=f"postgresql:///state?host={tmp_path}").write())

    (note,) = check_sharing(config).notes

    assert note.startswith("not checked: postgresql://")
