"""What members conclude from their registries' answers about each other's uploads, and when they ask again."""

import pytest

from tunnelmgr.core.oci import RegistryAction, classify
from tunnelmgr.core.policy import GroupPolicy, decide, judge
from tunnelmgr.core.registry_sharing import (
    INTERVAL,
    REPOSITORY,
    RETRY,
    CheckUpload,
    Sharing,
    SharingReport,
    SharingState,
    seen_by,
    sharing_of,
    unshared_pairs,
)

REGISTRY = "127.0.0.1:5000"
UPLOAD = CheckUpload("1", "one", REGISTRY, "/v2/tunnelmgr/check/blobs/uploads/1")


def report(member: str, writer: str, sharing: Sharing = Sharing.YES, upload: str = "1") -> SharingReport:
    """Return a report about an upload in the only registry."""
    return SharingReport(member, writer, REGISTRY, upload, sharing)


@pytest.mark.parametrize(
    ("status", "code", "sharing"),
    [
        (204, "", Sharing.YES),
        (200, "", Sharing.YES),
        (404, "BLOB_UPLOAD_UNKNOWN", Sharing.OTHER_STORAGE),
        (404, "NAME_UNKNOWN", Sharing.OTHER_STORAGE),
        (404, "BLOB_UPLOAD_INVALID", Sharing.OTHER_SECRET),
        (400, "BLOB_UPLOAD_INVALID", Sharing.OTHER_SECRET),
        (503, "UNAVAILABLE", Sharing.NO_ANSWER),
        (401, "UNAUTHORIZED", Sharing.NO_ANSWER),
    ],
)
def test_an_answer_says_what_is_different(status: int, code: str, sharing: Sharing) -> None:
    """The code of the error tells another secret from another storage; other errors say nothing about either."""
    assert sharing_of(status, code) is sharing


def test_a_member_answers_each_upload_of_the_others_once() -> None:
    """Its own uploads, those in a registry that it does not have, and those that it has reported are left out."""
    others = [CheckUpload("2", "two", REGISTRY, "/x"), CheckUpload("3", "two", "127.0.0.1:6000", "/x")]
    state = SharingState([UPLOAD, *others], [report("two", "one")])

    assert list(state.unanswered("one", {REGISTRY})) == [others[0]]
    assert list(state.unanswered("two", {REGISTRY})) == []
    assert list(state.unanswered("three", {REGISTRY})) == [UPLOAD, others[0]]


def test_a_members_upload_is_found_by_its_registry() -> None:
    """A member that starts again continues with the upload that it has in the same registry."""
    state = SharingState([UPLOAD])

    assert state.location_of("one", REGISTRY) == UPLOAD.location
    assert state.location_of("one", "127.0.0.1:6000") == ""
    assert state.location_of("two", REGISTRY) == ""


@pytest.mark.parametrize(
    ("reports", "delay"),
    [
        ([report("one", "one"), report("two", "one")], INTERVAL),
        ([report("one", "one", Sharing.READ_ONLY)], INTERVAL),
        ([report("one", "one", Sharing.READ_ONLY), report("one", "two", Sharing.OTHER_SECRET)], RETRY),
        ([report("one", "one", Sharing.NO_ANSWER)], RETRY),
        ([report("one", "one")], RETRY),
        ([report("one", "one"), report("two", "one", Sharing.OTHER_STORAGE)], RETRY),
        ([report("one", "one"), report("two", "one"), report("one", "two", Sharing.OTHER_STORAGE)], RETRY),
        ([report("one", "one"), report("two", "one"), report("one", "gone", Sharing.OTHER_STORAGE)], INTERVAL),
        ([], RETRY),
    ],
)
def test_a_member_asks_again_sooner_while_something_is_wrong_or_unknown(
    reports: list[SharingReport], delay: float
) -> None:
    """A problem in either direction and a missing report count; a member that has left does not."""
    state = SharingState(reports=reports)

    assert not state.is_due("one", REGISTRY, {"two"}, delay - 0.1)
    assert state.is_due("one", REGISTRY, {"two"}, delay)


def test_the_worst_report_about_a_member_counts() -> None:
    """With several registries, one that differs is enough; unknown members are left out."""
    second = SharingReport("one", "two", "127.0.0.1:6000", "2", Sharing.OTHER_SECRET)
    reports = [report("one", "two"), second, report("one", "gone"), report("two", "one"), report("one", "one")]

    assert seen_by(reports, "one", {"one", "two"}) == {"one": reports[4], "two": second}


def test_pairs_of_members_are_counted_once() -> None:
    """A pair is not shared if one of both says so; a registry that begins no upload counts as a pair with itself."""
    bad = Sharing.OTHER_STORAGE
    reports = [report("one", "two", bad), report("two", "one", bad), report("one", "three"), report("gone", "one", bad)]

    assert unshared_pairs(reports, {"one", "two", "three"}) == 1
    assert unshared_pairs([report("one", "one", Sharing.NO_ANSWER)], {"one"}) == 1
    assert unshared_pairs([report("one", "one", Sharing.READ_ONLY)], {"one"}) == 0


def test_agents_have_no_access_to_the_uploads_without_a_grant() -> None:
    """No group may begin, read or cancel an upload in the repository unless one of its push patterns includes it."""
    policy = GroupPolicy.build("ci", pull=["**"], push=["team/*"])
    upload = f"/v2/{REPOSITORY}/blobs/uploads/"

    verdicts = [
        decide(classify(method, target), policy) for method, target in (("POST", upload), ("GET", f"{upload}1"))
    ]

    assert [verdict.allowed for verdict in verdicts] == [False, False]
    assert not judge(RegistryAction.PULL, REPOSITORY, GroupPolicy.build("ci", pull=["team/*"])).allowed
