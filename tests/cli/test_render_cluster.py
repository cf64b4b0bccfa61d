"""What `members` and `status` print of the members' registries."""

from typing import Any

import pytest
from rich.console import Console

from tunnelmgr.cli.render_cluster import cluster_problems, members
from tunnelmgr.control.views import cluster_view
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.registry_sharing import Sharing, SharingReport

CLUSTER = Cluster("one", {name: Member(name) for name in ("one", "two", "three")})
REGISTRY = "127.0.0.1:5000"


def view(*reports: tuple[str, str, Sharing, str]) -> dict[str, Any]:
    """Return `members --json` of three members with these reports: member, writer, what it says, and an error."""
    found = [SharingReport(member, writer, REGISTRY, "1", said, error) for member, writer, said, error in reports]
    return cluster_view(CLUSTER, found)


def column(cluster: dict[str, Any]) -> dict[str, str]:
    """Return what `members` shows in the column REGISTRY."""
    console = Console(width=200, color_system=None)
    with console.capture() as printed:
        console.print(members(cluster))
    head, *rows = [line for line in printed.get().splitlines() if line.strip(" ─")]
    at, end = head.index("REGISTRY"), head.index("HEARTBEAT")
    return {row.split()[0]: row[at:end].strip() for row in rows}


def test_registries_that_are_one_are_no_problem() -> None:
    """A member that has seen an upload shows it; one that has no report yet shows a dash."""
    cluster = view(
        ("one", "one", Sharing.YES, ""), ("one", "two", Sharing.YES, ""), ("two", "two", Sharing.READ_ONLY, "")
    )

    assert cluster["members"][0]["registry"] == {
        "upload": "yes",
        "sees_uploads_of": {"two": "yes"},
        "error": None,
    }
    assert column(cluster) == {"one": "● shared", "two": "read-only", "three": "-"}
    assert cluster_problems(cluster) == []


@pytest.mark.parametrize(
    ("said", "shown", "words"),
    [
        (Sharing.OTHER_STORAGE, "✖ other storage", "Configure the same storage on both"),
        (Sharing.OTHER_SECRET, "✖ other secret", "Set the same http.secret on both"),
    ],
)
def test_a_difference_is_named_once_for_a_pair_of_members(said: Sharing, shown: str, words: str) -> None:
    """Both members show the difference, and one sentence says what it is and what to do."""
    cluster = view(("one", "two", said, ""), ("two", "one", said, ""), ("three", "one", Sharing.YES, ""))

    (problem,) = cluster_problems(cluster)

    assert column(cluster) == {"one": shown, "two": shown, "three": "● shared"}
    assert problem.startswith("the registry of member one ")
    assert "member two" in problem
    assert words in problem


def test_a_registry_that_does_not_answer_is_named_with_its_error() -> None:
    """One that begins no upload has one sentence; one that does not answer about others has one for each of them."""
    away = f"{REGISTRY}: Connection refused"
    cluster = view(
        ("one", "one", Sharing.NO_ANSWER, away),
        ("one", "two", Sharing.NO_ANSWER, away),
        ("two", "one", Sharing.NO_ANSWER, away),
        ("two", "three", Sharing.NO_ANSWER, away),
    )

    assert column(cluster) == {"one": "✖ no uploads", "two": "✖ no answer", "three": "-"}
    assert cluster_problems(cluster) == [
        f"the registry of member one begins no upload: {away}",
        f"the registry of member two did not answer when asked for an upload of member one: {away}",
        f"the registry of member two did not answer when asked for an upload of member three: {away}",
    ]


def test_a_daemon_that_does_not_report_registries_is_shown() -> None:
    """During an upgrade, the command may be newer than the daemon that it asks."""
    cluster = view()
    for member in cluster["members"]:
        del member["registry"]

    assert column(cluster) == {"one": "-", "two": "-", "three": "-"}
    assert cluster_problems(cluster) == []
