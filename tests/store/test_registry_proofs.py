"""The uploads and reports by which members verify their registries, in a real database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import psycopg
import pytest

from lab.postgres import Postgres
from tests.store.conftest import server, url
from tunnelmgr.core.registry_sharing import CheckUpload, Sharing, SharingReport, SharingState
from tunnelmgr.errors import StoreError
from tunnelmgr.store.postgres import PostgresStore
from tunnelmgr.store.registry_proofs import FORGOTTEN_SECONDS, RegistryProofs

pytestmark = pytest.mark.acceptance

UPLOAD = CheckUpload("1", "one", "127.0.0.1:5000", "/v2/tunnelmgr/check/blobs/uploads/1?_state=x")
AGAIN = replace(UPLOAD, id="2")
REPORT = SharingReport("two", "one", "127.0.0.1:5000", "1", Sharing.OTHER_SECRET, "why")


@pytest.fixture
def proofs(url: str) -> Iterator[Callable[[str], RegistryProofs]]:
    """Return the view of a member by its name; all are closed at the end."""
    PostgresStore(url, "one").close()
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(closing(RegistryProofs(url, name)))


def test_an_upload_and_a_report_reach_the_other_member(proofs: Callable[[str], RegistryProofs]) -> None:
    """What one member writes, the other reads; another announcement takes the place of the last one."""
    one, two = proofs("one"), proofs("two")
    one.announce(UPLOAD)
    two.report(REPORT)

    before = one.read()
    one.announce(AGAIN)

    assert before == SharingState((UPLOAD,), (REPORT,))
    assert two.read() == SharingState((AGAIN,), (REPORT,))


def test_a_report_replaces_the_last_one_about_the_same_member(proofs: Callable[[str], RegistryProofs]) -> None:
    """Only the latest report of a member about another one's registry is kept."""
    two = proofs("two")
    later = SharingReport("two", "one", "127.0.0.1:5000", "2", Sharing.YES)
    two.report(REPORT)

    two.report(later)

    assert two.read().reports == (later,)


def test_a_member_that_starts_again_has_reported_nothing(proofs: Callable[[str], RegistryProofs]) -> None:
    """Its registry may have changed meanwhile, so its reports are removed; its upload and reports about it stay."""
    one, two = proofs("one"), proofs("two")
    one.announce(UPLOAD)
    two.report(REPORT)
    one.report(SharingReport("one", "two", "127.0.0.1:5000", "2", Sharing.YES))

    proofs("one").start_over()

    assert two.read() == SharingState((UPLOAD,), (REPORT,))


def test_what_a_lost_member_has_left_is_removed(proofs: Callable[[str], RegistryProofs], url: str) -> None:
    """Uploads and reports that are older than an hour are removed when any member starts."""
    one = proofs("one")
    one.announce(UPLOAD)
    one.report(REPORT)
    with psycopg.connect(url, autocommit=True) as db:
        age = (FORGOTTEN_SECONDS + 1,)
        db.execute("UPDATE registry_upload SET at = at - make_interval(secs => %s)", age)
        db.execute("UPDATE registry_report SET at = at - make_interval(secs => %s)", age)

    proofs("three").start_over()

    assert one.read() == SharingState()


def test_a_report_of_a_newer_version_is_left_out(proofs: Callable[[str], RegistryProofs], url: str) -> None:
    """A cluster that is being upgraded continues to work."""
    one = proofs("one")
    one.report(REPORT)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE registry_report SET sharing = 'unheard-of'")

    assert one.read().reports == ()


def test_a_server_that_restarts_costs_one_call(proofs: Callable[[str], RegistryProofs], server: Postgres) -> None:
    """The call fails with StoreError, and the next one connects again."""
    one = proofs("one")
    one.announce(UPLOAD)
    server.stop()
    with pytest.raises(StoreError, match="postgresql://"):
        one.read()
    server.start()

    assert one.read().uploads == (UPLOAD,)


__all__ = ["server", "url"]
