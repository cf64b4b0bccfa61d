"""The order in which trust methods are asked, and the report if none has evidence."""

import asyncio
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from tests.trust.fake_scanner import FakeScanner
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import Event, EvidenceAbsent, EvidenceContradicted, EvidenceFound, KeyExamined
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust import resolver as resolver_file
from tunnelmgr.trust.resolver import Resolver

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


@dataclass
class FakeSink:
    """Keeps the reported events."""

    reports: list[Event] = field(default_factory=list)

    def report(self, event: Event) -> None:
        """Keep an event."""
        self.reports.append(event)


@dataclass
class FakeMethod:
    """A trust method that has evidence, or fails."""

    answer: HostTrust | Exception
    asked: list[Agent] = field(default_factory=list)

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Answer."""
        self.asked.append(agent)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def word(method: Method) -> FakeMethod:
    """Return a trust method that has evidence."""
    return FakeMethod(HostTrust(method, (KEY,)))


def lacking(why: str) -> FakeMethod:
    """Return a trust method that has none."""
    return FakeMethod(HostKeyUnknownError(why))


async def sought(
    words: dict[Method, FakeMethod],
    trust: tuple[Method, ...],
    minimum: Method = Method.TOFU,
    at_least: Method | None = None,
) -> Event:
    """Seek evidence for the agent; return the one report."""
    events = FakeSink()
    rules = Rules(trust={"cloud": trust}, minimum={"ci": minimum})
    await Resolver({"cloud": words}, rules).seek(AGENT, at_least, events)
    (report,) = events.reports
    return report


async def test_the_first_method_with_evidence_answers() -> None:
    """Methods are asked in the order of the source's `trust`, and none after the first with evidence."""
    words = {Method.CONSOLE: word(Method.CONSOLE), Method.PINNED: word(Method.PINNED)}

    report = await sought(words, (Method.CONSOLE, Method.PINNED))

    assert report == EvidenceFound(AGENT.id, "1", HostTrust(Method.CONSOLE, (KEY,)))
    assert words[Method.PINNED].asked == []


async def test_a_method_without_evidence_gives_way_to_the_next() -> None:
    """If a method has no evidence, the next one is asked."""
    words = {Method.PINNED: lacking("no host_key"), Method.CONSOLE: word(Method.CONSOLE)}

    report = await sought(words, (Method.PINNED, Method.CONSOLE))

    assert isinstance(report, EvidenceFound)
    assert report.trust.method is Method.CONSOLE


async def test_no_method_is_asked_that_the_source_does_not_name() -> None:
    """A method that is not in the source's `trust` is never asked."""
    words = {Method.CONSOLE: lacking("no host key block yet"), Method.TOFU: word(Method.TOFU)}

    report = await sought(words, (Method.CONSOLE,))

    assert report == EvidenceAbsent(AGENT.id, "1", "console: no host key block yet")
    assert words[Method.TOFU].asked == []


async def test_no_method_is_asked_that_is_weaker_than_the_group_allows() -> None:
    """A method below the group's minimum_trust is not asked."""
    words = {Method.TOFU: word(Method.TOFU)}

    report = await sought(words, (Method.TOFU,), minimum=Method.CONSOLE)

    assert report == EvidenceAbsent(AGENT.id, "1", "minimum_trust of the group accepts no method of this source")
    assert words[Method.TOFU].asked == []


async def test_no_method_is_asked_that_is_weaker_than_the_proof_of_before() -> None:
    """A method weaker than the one that identified the agent before is not asked, and the report says so."""
    words = {Method.TOFU: word(Method.TOFU)}

    report = await sought(words, (Method.TOFU,), at_least=Method.CONSOLE)

    assert report == EvidenceAbsent(
        AGENT.id, "1", "tofu: weaker than console, by which the agent was identified before"
    )
    assert words[Method.TOFU].asked == []


async def test_what_every_method_lacks_is_reported() -> None:
    """The report has the reason of every method, which `list` shows."""
    words = {
        Method.PINNED: lacking("the file has no host_key for it"),
        Method.CONSOLE: lacking("no host key block yet"),
    }

    report = await sought(words, (Method.PINNED, Method.CONSOLE, Method.TOFU))

    assert report == EvidenceAbsent(
        AGENT.id,
        "1",
        "pinned: the file has no host_key for it; console: no host key block yet; tofu: not available for this source",
    )


async def test_a_method_that_breaks_fails_alone() -> None:
    """If a method raises an unexpected exception, it is logged and the next one is asked."""
    words = {Method.PINNED: FakeMethod(ZeroDivisionError()), Method.CONSOLE: word(Method.CONSOLE)}

    with capture_logs() as logs:
        report = await sought(words, (Method.PINNED, Method.CONSOLE))

    assert isinstance(report, EvidenceFound)
    assert "trust method failed" in [entry["event"] for entry in logs]


async def test_a_method_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that does not answer in time has no evidence."""

    class Hanging:
        async def trust_for(self, agent: Agent) -> HostTrust:
            await asyncio.Event().wait()
            raise AssertionError(agent)

    monkeypatch.setattr(resolver_file, "METHOD_TIMEOUT", 0.01)
    events = FakeSink()
    resolver = Resolver({"cloud": {Method.CONSOLE: Hanging()}}, Rules(trust={"cloud": (Method.CONSOLE,)}))

    await resolver.seek(AGENT, None, events)

    assert events.reports == [EvidenceAbsent(AGENT.id, "1", "console: no answer within 0.01 s")]


async def test_a_contradiction_ends_the_search() -> None:
    """If a method contradicts the agent, no other method is asked."""
    words = {Method.PINNED: FakeMethod(HostKeyMismatchError("another machine")), Method.TOFU: word(Method.TOFU)}

    report = await sought(words, (Method.PINNED, Method.TOFU))

    assert report == EvidenceContradicted(AGENT.id, "1", "another machine")
    assert words[Method.TOFU].asked == []


# --- disputes ---


@pytest.mark.parametrize(
    ("answer", "report"),
    [
        (KEY, KeyExamined(AGENT.id, "1", KEY)),
        (
            UnreachableError("10.0.0.1 port 22", "refused"),
            KeyExamined(AGENT.id, "1", "", "cannot reach 10.0.0.1 port 22: refused"),
        ),
        (
            RuntimeError("odd"),
            KeyExamined(AGENT.id, "1", "", "failed: RuntimeError('odd'); see the traceback in the log"),
        ),
    ],
)
async def test_an_examination_is_reported_however_it_ends(answer: str | Exception, report: Event) -> None:
    """The report of an examination has the key that the agent presented, or the reason why there is none."""
    scanner, events = FakeScanner(keys={AGENT: answer}), FakeSink()

    await Resolver({}, Rules()).examine(AGENT, (KEY,), scanner, events)

    assert events.reports == [report]
    assert scanner.wanted == [(KEY,)]
