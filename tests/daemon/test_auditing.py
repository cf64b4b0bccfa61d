"""What is audited: every refusal, every allowed action on a repository, and every step of trust and tunnels."""

from typing import Any

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import Moment, Record, World
from tunnelmgr.daemon.auditing import Auditor
from tunnelmgr.gate.caller import Caller, RequestRecord

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"
AGENT = Agent(AgentId("ec2:i-1"), "i-1", "cloud", "ci", "ci-1", ("10.0.0.1",))
RECORD = Record(AGENT, first_seen=0.0, changed=0.0, trust=HostTrust(Method.CONSOLE, (KEY,)))


class Book:
    """A log that keeps its entries."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def note(self, code: str, **facts: object) -> None:
        """Keep one entry."""
        self.entries.append({"code": code, **facts})


def auditor(book: Book) -> Auditor:
    """Return an auditor of a world with one agent."""
    return Auditor(book, lambda: World(records={AGENT.id: RECORD}))  # type: ignore[arg-type]


def request(**changes: object) -> RequestRecord:
    """Return a pull that was allowed."""
    facts = {
        "caller": Caller(AGENT.id, "ci-1", "ci", "registry-1", "127.0.0.1:5000", 7),
        "method": "GET",
        "action": "pull",
        "repository": "team/app",
        "reference": "1",
        "verdict": "allowed",
        "rule": "pull **",
        "status": 200,
        "bytes_to_agent": 10,
        "bytes_from_agent": 0,
        "took": 0.0125,
    }
    return RequestRecord(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_pull_is_told_with_agent_key_rule_and_size() -> None:
    """An entry says who, by which proof, did what, by which rule, with which result."""
    book = Book()

    auditor(book).request(request())

    assert book.entries == [
        {
            "code": "request-allowed",
            "agent": "ec2:i-1",
            "incarnation": "i-1",
            "group": "ci",
            "address": "10.0.0.1",
            "trust": "console",
            "key": RECORD.trust.fingerprints[0] if RECORD.trust else "",
            "channel": 7,
            "method": "GET",
            "action": "pull",
            "repository": "team/app",
            "reference": "1",
            "verdict": "allow",
            "rule": "pull **",
            "status": 200,
            "bytes_to_agent": 10,
            "bytes_from_agent": 0,
            "duration_ms": 12.5,
        }
    ]


@pytest.mark.parametrize("action", ["base", "well-known"])
def test_an_allowed_look_at_nothing_is_not_audited(action: str) -> None:
    """Version checks and our own probes are no use of a repository."""
    book = Book()

    auditor(book).request(request(action=action))

    assert book.entries == []


@pytest.mark.parametrize(("verdict", "code"), [("refused", "request-refused"), ("malformed", "request-malformed")])
def test_every_refusal_is_audited(verdict: str, code: str) -> None:
    """Whatever was refused stands in the log, also what could not be read."""
    book = Book()

    auditor(book).request(request(action="base", verdict=verdict))

    assert [(entry["code"], entry["verdict"]) for entry in book.entries] == [(code, "refuse")]


def test_a_request_of_an_agent_that_is_forgotten_still_names_it() -> None:
    """The last request of an agent that has just gone is not lost."""
    book = Book()

    Auditor(book, World).request(request())  # type: ignore[arg-type]

    assert book.entries[0]["agent"] == "ec2:i-1"


def test_a_quarantine_is_told_with_its_reason_and_waiting_is_not() -> None:
    """The steps that matter are audited; that something is waited for is not."""
    book = Book()

    auditor(book).moment(RECORD, Moment(1.0, "quarantined", "another key"))
    auditor(book).moment(RECORD, Moment(1.0, "waiting", "console: no block yet"))

    assert [(entry["code"], entry["detail"]) for entry in book.entries] == [("tunnel-quarantined", "another key")]
