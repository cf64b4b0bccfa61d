"""The audit trail: every refusal, every allowed action on a repository, and every step of trust and tunnels."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.until import until
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Record, World
from tunnelmgr.daemon import audit_trail
from tunnelmgr.daemon.audit_trail import BURST, FOLD, RATE, AuditTrail
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_record import RequestRecord

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"
AGENT = Agent(AgentId("ec2:i-1"), "i-1", "cloud", "ci", "ci-1", ("10.0.0.1",))
RECORD = Record(AGENT, first_seen=0.0, changed=0.0, trust=HostTrust(Method.CONSOLE, (KEY,)))


class RecordingLog:
    """An audit log that keeps its entries."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.is_full = False
        self.healthy = True
        self.has_room = asyncio.Event()

    def note(self, code: str, agent: AgentId | None = None, **facts: object) -> None:
        """Keep one entry; facts that are None are left out."""
        entry = {"code": code, "agent": agent, **facts}
        self.entries.append({name: value for name, value in entry.items() if value is not None})

    def full(self, _agent: AgentId) -> bool:
        """Return whether the next entry would be lost."""
        return self.is_full

    async def room(self, _agent: AgentId) -> None:
        """Wait until there is room."""
        await self.has_room.wait()


class Harness:
    """An audit trail, its entries, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.log = RecordingLog()
        self.world = World(records={AGENT.id: RECORD})
        self.trail = AuditTrail(self.log, self, lambda: self.now)  # type: ignore[arg-type]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The audit entries."""
        return self.log.entries

    def later(self, seconds: float) -> None:
        """Advance the clock, and let the trail write what is due."""
        self.now += seconds
        self.trail._tick()


class Empty:
    """A view of an empty world."""

    world = World()


@pytest.fixture
async def harness() -> Harness:
    """Make an audit trail for a world with one agent."""
    return Harness()


def request(**changes: object) -> RequestRecord:
    """Return a pull that was allowed."""
    facts = {
        "caller": Caller(AGENT.id, "1", "ci-1", "ci", "registry-1", "127.0.0.1:5000", "registry", 7),
        "method": "GET",
        "action": "pull",
        "repository": "team/app",
        "reference": "1",
        "verdict": "allowed",
        "rule": "pull **",
        "status": 200,
        "bytes_to_agent": 10,
        "bytes_from_agent": 1,
        "took": 0.0125,
    }
    return RequestRecord(**{**facts, **changes})  # type: ignore[arg-type]


async def test_a_pull_is_audited_with_agent_key_rule_and_size(harness: Harness) -> None:
    """An entry names the agent, its proof, the action, the rule that decided, and the result."""
    harness.trail.record(request())

    assert harness.entries == [
        {
            "code": "request-allowed",
            "agent": "ec2:i-1",
            "incarnation": "i-1",
            "group": "ci",
            "address": "10.0.0.1",
            "trust": "console",
            "key": RECORD.trust.fingerprints[0] if RECORD.trust else "",
            "forward": "registry",
            "channel": 7,
            "method": "GET",
            "action": "pull",
            "repository": "team/app",
            "reference": "1",
            "verdict": "allow",
            "rule": "pull **",
            "status": 200,
            "bytes_to_agent": 10,
            "bytes_from_agent": 1,
            "duration_ms": 12.5,
        }
    ]


async def test_equal_requests_become_two_entries(harness: Harness) -> None:
    """The first is written at once; equal ones that follow become one entry with count, both times and sums."""
    harness.trail.record(request())
    harness.now += 1
    harness.trail.record(request(took=0.5))
    harness.now += 1
    harness.trail.record(request(bytes_to_agent=5))
    assert len(harness.entries) == 1

    harness.later(FOLD)

    assert len(harness.entries) == 2
    folded = harness.entries[1]
    assert (folded["count"], folded["since"]) == (2, "1970-01-01T00:16:41.000Z")
    assert (folded["bytes_to_agent"], folded["bytes_from_agent"], folded["duration_ms"]) == (15, 2, 500.0)


async def test_requests_that_continue_become_one_entry_per_window(harness: Harness) -> None:
    """A flood of equal requests for an hour causes one entry in five seconds, and none after its end."""
    for _ in range(100):
        harness.trail.record(request())
        harness.later(FOLD / 2)
    flooded = len(harness.entries)
    harness.later(FOLD)
    harness.later(FOLD)
    after = len(harness.entries)
    harness.later(10 * FOLD)

    assert flooded <= 52
    assert len(harness.entries) == after
    assert sum(entry.get("count", 1) for entry in harness.entries) == 100


@pytest.mark.parametrize(
    "change",
    [
        {"method": "HEAD"},
        {"repository": "team/other"},
        {"reference": "2"},
        {"verdict": "refused"},
        {"status": 404},
        {"error": "registry-unavailable"},
        {"caller": Caller(AgentId("ec2:i-2"), "1", "ci-2", "ci", "registry-1", "127.0.0.1:5000", "registry", 8)},
        {"caller": Caller(AGENT.id, "1", "ci-1", "ci", "registry-1", "127.0.0.1:5001", "mirror", 9)},
    ],
)
async def test_requests_that_differ_have_entries_of_their_own(harness: Harness, change: dict[str, object]) -> None:
    """Only requests of one agent through one forward with the same target and result are counted together."""
    harness.trail.record(request())
    harness.trail.record(request(**change))

    assert len(harness.entries) == 2


async def test_a_stop_writes_what_is_folded(harness: Harness) -> None:
    """A stop writes every folded entry."""
    harness.log.has_room.set()
    for _ in range(3):
        harness.trail.record(request())

    await harness.trail.flush()

    assert [entry.get("count") for entry in harness.entries] == [None, 2]


async def test_folded_entries_wait_for_room(harness: Harness) -> None:
    """Many folded entries that are due at once do not overrun the agent's queue; if the disk fails, they are lost."""
    for number in range(3):
        for _ in range(2):
            harness.trail.record(request(reference=str(number)))
    harness.log.is_full = True
    harness.later(FOLD)
    assert len(harness.entries) == 3

    harness.trail.record(request(reference="0"))
    harness.log.is_full = False
    harness.later(1.0)
    assert [entry["count"] for entry in harness.entries[3:]] == [2, 1, 1]

    harness.trail.record(request(reference="0"))
    harness.log.is_full, harness.log.healthy = True, False
    harness.later(FOLD)
    assert len(harness.entries) == 7


async def test_a_stop_waits_for_room_for_a_limited_time(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded entries are written at a stop once there is room, and passed on without room at the deadline."""
    for _ in range(2):
        harness.trail.record(request())
    monkeypatch.setattr(audit_trail, "ROOM_TIMEOUT", 0.01)

    await harness.trail.flush()
    assert len(harness.entries) == 2

    harness.trail.record(request())
    harness.trail.record(request())
    harness.log.healthy = False
    await harness.trail.flush()
    assert len(harness.entries) == 4


async def test_folded_entries_are_written_without_another_request(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last folded entry is written by a timer, without another request."""
    monkeypatch.setattr(audit_trail, "FOLD", 0.05)
    clock = asyncio.get_running_loop().time
    trail = AuditTrail(harness.log, harness, clock)  # type: ignore[arg-type]
    trail.record(request())
    trail.record(request())

    await until(lambda: len(harness.entries) == 2)
    await until(lambda: trail._timer is None)

    assert harness.entries[1]["count"] == 1


async def test_an_agent_that_causes_many_entries_waits_for_its_rate(harness: Harness) -> None:
    """An agent waits once it has used up its burst, and no other agent waits."""
    for number in range(int(BURST)):
        harness.trail.record(request(reference=str(number)))
    await harness.trail.throttle(AGENT.id)

    for number in range(int(RATE)):
        harness.trail.record(request(reference=f"more-{number}"))
    bucket = harness.trail._buckets[AGENT.id]
    assert bucket.wait(harness.now) == pytest.approx(1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await harness.trail.throttle(AGENT.id)
    await harness.trail.throttle(AgentId("ec2:i-2"))

    harness.later(1.0)
    await harness.trail.throttle(AGENT.id)
    harness.later(BURST / RATE + 1)
    assert AGENT.id not in harness.trail._buckets


async def test_an_agent_without_room_waits_for_the_disk_for_a_limited_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent continues once its entries are written, at the deadline, or at once if the disk fails."""
    harness.log.is_full = True
    monkeypatch.setattr(audit_trail, "ROOM_TIMEOUT", 0.01)
    await harness.trail.throttle(AGENT.id)

    monkeypatch.setattr(audit_trail, "ROOM_TIMEOUT", 10.0)
    harness.log.healthy = False
    await harness.trail.throttle(AGENT.id)
    harness.log.healthy = True
    harness.log.has_room.set()
    async with asyncio.timeout(5):
        await harness.trail.throttle(AGENT.id)


@pytest.mark.parametrize("action", ["base", "well-known"])
async def test_allowed_version_checks_are_not_audited(harness: Harness, action: str) -> None:
    """Version checks and the controller's own probes name no repository and cause no entry."""
    harness.trail.record(request(action=action))

    assert harness.entries == []
    assert harness.trail._buckets == {}


@pytest.mark.parametrize(("verdict", "code"), [("refused", "request-refused"), ("malformed", "request-malformed")])
async def test_every_refusal_is_audited(harness: Harness, verdict: str, code: str) -> None:
    """Every refused request is audited, and so is one that could not be parsed."""
    harness.trail.record(request(action="base", verdict=verdict))

    assert [(entry["code"], entry["verdict"]) for entry in harness.entries] == [(code, "refuse")]


async def test_the_log_has_a_line_for_each_entry(harness: Harness) -> None:
    """Reads are logged at debug level, refusals and pushes at info level, and a failing registry is a warning."""
    with capture_logs() as lines:
        harness.trail.record(request())
        harness.trail.record(request(action="push"))
        harness.trail.record(request(verdict="refused", status=403))
        harness.trail.record(request(status=503, error="registry-unavailable", reason="the registry hung up"))
        for _ in range(10):
            harness.trail.record(request(verdict="refused", status=403))
        harness.later(FOLD)

    assert [(line["log_level"], line["event"], line.get("count")) for line in lines] == [
        ("debug", "request", None),
        ("info", "request", None),
        ("info", "request", None),
        ("warning", "request failed", None),
        ("info", "request", 10),
    ]
    assert lines[0] == {
        "agent": "ec2:i-1",
        "group": "ci",
        "forward": "registry",
        "action": "pull",
        "repository": "team/app",
        "reference": "1",
        "verdict": "allowed",
        "status": 200,
        "bytes": 11,
        "took": 0.0125,
        "event": "request",
        "log_level": "debug",
    }


async def test_a_request_of_a_forgotten_agent_still_names_it() -> None:
    """The last request of an agent that has left is audited with its id."""
    log = RecordingLog()

    AuditTrail(log, Empty(), lambda: 0.0).record(request())  # type: ignore[arg-type]

    assert log.entries[0]["agent"] == "ec2:i-1"


async def test_a_quarantine_is_audited_with_its_reason_and_waiting_is_not(harness: Harness) -> None:
    """A quarantine is audited; waiting for evidence is not."""
    harness.trail.history_grew(RECORD, HistoryEntry(1.0, "quarantined", "another key"))
    harness.trail.history_grew(RECORD, HistoryEntry(1.0, "waiting", "console: no block yet"))

    assert [(entry["code"], entry["detail"]) for entry in harness.entries] == [("tunnel-quarantined", "another key")]


async def test_a_repeated_step_is_audited_with_its_count(harness: Harness) -> None:
    """A repeated step is audited with its count; the first one has no count."""
    failed = HistoryEntry(1.0, "failed", "nobody answers")
    harness.trail.history_grew(RECORD, failed)
    harness.trail.history_grew(RECORD, failed.again(2.0))

    assert [(entry["code"], entry.get("count")) for entry in harness.entries] == [
        ("tunnel-failed", None),
        ("tunnel-failed", 2),
    ]


async def test_a_release_is_audited_with_the_users_id(harness: Harness) -> None:
    """The entry of a release has the user's id and the reason; a step that no user asked for has no user id."""
    harness.trail.history_grew(RECORD, HistoryEntry(1.0, "released", "reinstalled", uid=1000))
    harness.trail.history_grew(RECORD, HistoryEntry(1.0, "probed", "up"))

    assert [(entry["code"], entry["detail"], entry.get("uid")) for entry in harness.entries] == [
        ("tunnel-released", "reinstalled", 1000),
        ("tunnel-probed", "up", None),
    ]
