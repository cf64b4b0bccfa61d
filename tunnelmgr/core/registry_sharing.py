"""Whether the registries of a cluster's members are one: they need the same storage and the same `http.secret`.

    member A: POST …/uploads/ in its registry ─▶ location, in the database ─▶ member B: GET location from its registry
                                                 report, in the database   ◀─ what that answers

The upload stays, and is announced again under a new id for the next verification: docker-registry leaves a file behind
for each upload that is cancelled (2.8.2, `hashstates`), which its `uploadpurging` never removes, but it does remove an
upload that is a week old. A member whose own registry no longer has the upload begins another one.

docker-registry 2.8.2 answers 204 if it has the upload, 404 BLOB_UPLOAD_UNKNOWN if it has another storage, and 404
BLOB_UPLOAD_INVALID if it has another `http.secret`, by which every location is signed. A registry that is read-only
answers 405 to the POST: its member only asks for the uploads of the others.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Final

REPOSITORY: Final = "tunnelmgr/check"
"""The repository of these uploads, which never gets an image. Agents need a grant for it as for any other."""
INTERVAL: Final = 600.0
"""Seconds between two announcements of a member while all registries are one."""
RETRY: Final = 15.0
"""Seconds between two announcements of a member while they are not, or while a member has not reported yet."""


class Sharing(StrEnum):
    """What a member's registry says of an upload; the last one only of the member's own."""

    YES = "yes"
    OTHER_STORAGE = "other-storage"
    OTHER_SECRET = "other-secret"  # noqa: S105 (a word in a report)
    NO_ANSWER = "no-answer"
    READ_ONLY = "read-only"

    @property
    def is_problem(self) -> bool:
        """Return whether an operator must act."""
        return self not in {Sharing.YES, Sharing.READ_ONLY}


_WORST_FIRST: Final = (
    Sharing.NO_ANSWER,
    Sharing.OTHER_STORAGE,
    Sharing.OTHER_SECRET,
    Sharing.READ_ONLY,
    Sharing.YES,
)


@dataclass(frozen=True, slots=True)
class CheckUpload:
    """An upload that `writer` has started in its registry; `location` is path and query.

    `id` changes each time that it is announced.
    """

    id: str
    writer: str
    registry: str
    location: str


@dataclass(frozen=True, slots=True)
class SharingReport:
    """What `member`'s registry says of `writer`'s upload, as announced under the id `upload`."""

    member: str
    writer: str
    registry: str
    upload: str
    sharing: Sharing
    error: str = ""


@dataclass(frozen=True, slots=True)
class SharingState:
    """The upload of each member, and the latest reports."""

    uploads: Sequence[CheckUpload] = ()
    reports: Sequence[SharingReport] = ()

    def unanswered(self, me: str, registries: Collection[str]) -> Iterator[CheckUpload]:
        """Yield the announced uploads of other members that this member has not reported about."""
        reported = {report.upload for report in self.reports if report.member == me}
        for upload in self.uploads:
            if upload.writer != me and upload.registry in registries and upload.id not in reported:
                yield upload

    def location_of(self, member: str, registry: str) -> str:
        """Return where a member's upload is; empty if it has none."""
        own = [one.location for one in self.uploads if (one.writer, one.registry) == (member, registry)]
        return own[0] if own else ""

    def is_due(self, me: str, registry: str, others: Collection[str], elapsed: float) -> bool:
        """Return whether this member should announce its upload again, `elapsed` seconds after the last time."""
        return elapsed >= (INTERVAL if self._is_settled(me, registry, others) else RETRY)

    def _is_settled(self, me: str, registry: str, others: Collection[str]) -> bool:
        """Return whether nothing is wrong between this member and the others, and all have seen its uploads.

        A report of this member about another counts too: what is wrong with one registry is wrong in both directions.
        """
        here = [report for report in self.reports if report.registry == registry]
        if any(one.sharing.is_problem and one.member == me and one.writer in {me, *others} for one in here):
            return False
        said = {one.member: one.sharing for one in here if one.writer == me}
        return said.get(me) is Sharing.READ_ONLY or all(said.get(name) is Sharing.YES for name in (me, *others))


def sharing_of(status: int, code: str) -> Sharing:
    """Return what the answer to the request for an upload's status means; `code` is that of its error."""
    if status in {HTTPStatus.NO_CONTENT, HTTPStatus.OK}:
        return Sharing.YES
    if code == "BLOB_UPLOAD_INVALID":
        return Sharing.OTHER_SECRET
    return Sharing.OTHER_STORAGE if status == HTTPStatus.NOT_FOUND else Sharing.NO_ANSWER


def seen_by(reports: Sequence[SharingReport], member: str, members: Collection[str]) -> Mapping[str, SharingReport]:
    """Return a member's worst report about each of `members`, itself included; those without a report are left out."""
    worst: dict[str, SharingReport] = {}
    ranked = sorted(reports, key=lambda report: _WORST_FIRST.index(report.sharing))
    for report in ranked:
        if report.member == member and report.writer in members:
            worst.setdefault(report.writer, report)
    return worst


def unshared_pairs(reports: Sequence[SharingReport], members: Collection[str]) -> int:
    """Return how many pairs of these members do not share a registry, by the word of at least one of them."""
    return len(
        {
            frozenset({one.member, one.writer})
            for one in reports
            if one.sharing.is_problem and {one.member, one.writer} <= set(members)
        }
    )
