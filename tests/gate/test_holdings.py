"""What the registry has confirmed counts for seconds, never across a delete, and only for the same question."""

import pytest

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate import holdings as module
from tunnelmgr.gate.head_parser import ResponseHead, parse_response_head
from tunnelmgr.gate.holdings import REMEMBERED_SECONDS, Holdings

REGISTRY = Endpoint("127.0.0.1", 5000)
HEAD = parse_response_head("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def found(holdings: Holdings, repository: str = "team/app", wire: bytes = b"HEAD a") -> ResponseHead | None:
    """Return what is remembered of a question."""
    return holdings.find(holdings.question(REGISTRY, repository, wire))


def test_a_confirmation_holds_for_seconds() -> None:
    """A confirmation is found until its time is over."""
    clock = Clock()
    holdings = Holdings(clock)
    holdings.remember(holdings.question(REGISTRY, "team/app", b"HEAD a"), HEAD)

    clock.now = REMEMBERED_SECONDS - 0.01
    assert found(holdings) is HEAD
    clock.now = REMEMBERED_SECONDS
    assert found(holdings) is None
    assert found(holdings) is None


def test_a_confirmation_is_for_one_question() -> None:
    """Another repository, registry or request finds nothing."""
    holdings = Holdings()
    holdings.remember(holdings.question(REGISTRY, "team/app", b"HEAD a"), HEAD)

    assert found(holdings, repository="team/other") is None
    assert found(holdings, wire=b"HEAD b") is None
    assert holdings.find(holdings.question(Endpoint("127.0.0.1", 5001), "team/app", b"HEAD a")) is None
    assert found(holdings) is HEAD


def test_a_delete_ends_what_was_confirmed_before_and_during_it() -> None:
    """Neither a confirmation from before a delete counts, nor one whose question is older than the delete's end."""
    holdings = Holdings()
    before = holdings.question(REGISTRY, "team/app", b"HEAD a")
    holdings.remember(before, HEAD)

    with holdings.deleting("team/app"):
        assert found(holdings) is None
        during = holdings.question(REGISTRY, "team/app", b"HEAD a")
        holdings.remember(during, HEAD)
        assert found(holdings) is None
    for outdated in (before, during):
        holdings.remember(outdated, HEAD)
        assert found(holdings) is None
    holdings.remember(holdings.question(REGISTRY, "team/app", b"HEAD a"), HEAD)

    assert found(holdings) is HEAD


def test_the_oldest_confirmation_leaves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many confirmations are remembered."""
    monkeypatch.setattr(module, "MAX_HOLDINGS", 2)
    holdings = Holdings()
    for wire in (b"1", b"2", b"3"):
        holdings.remember(holdings.question(REGISTRY, "team/app", wire), HEAD)

    assert [found(holdings, wire=wire) is HEAD for wire in (b"1", b"2", b"3")] == [False, True, True]
