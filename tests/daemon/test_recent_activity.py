"""The last hour and the last refusals: what is kept, and that it stays small."""

from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.daemon.recent_activity import MAX_REFUSALS, MINUTES, RecentActivity
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.traffic import Traffic

CALLER = Caller(AgentId("static:builder-1"), "1", "builder-1", "ci", "registry-1", "127.0.0.1:5000", "registry")
REFUSED = RequestRecord(CALLER, "PUT", "push", "team/app", "v1", "refused", "default", 403, 10, 20, 0.1)
ALLOWED = replace(REFUSED, method="GET", action="pull", verdict="allowed", rule="**", status=200)


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def by(name: str, **changes: object) -> RequestRecord:
    """Return a refused request of another agent."""
    caller = replace(CALLER, agent=AgentId(f"static:{name}"))
    return replace(REFUSED, caller=caller, **changes)  # type: ignore[arg-type]


def test_equal_refusals_are_one_with_a_count() -> None:
    """Refusals of one agent by one rule are one entry with the last name, the first time and the number."""
    clock = Clock()
    activity = RecentActivity(clock)
    activity.record(REFUSED)
    clock.now += 5
    activity.record(replace(REFUSED, repository="team/other"))

    (refusal,) = activity.refusals()
    assert (refusal.count, refusal.since, refusal.at, refusal.repository) == (2, 1000.0, 1005.0, "team/other")


def test_the_newest_refusal_comes_first() -> None:
    """A refusal that repeats moves to the front."""
    activity = RecentActivity(Clock())
    for request in (REFUSED, by("builder-2"), REFUSED):
        activity.record(request)

    assert [refusal.agent for refusal in activity.refusals()] == ["static:builder-1", "static:builder-2"]


def test_an_agent_that_asks_for_ever_new_names_displaces_no_other() -> None:
    """However many names an agent is refused, the refusals of others stay, and the number of entries is bounded."""
    activity = RecentActivity(Clock())
    activity.record(by("builder-2"))
    for number in range(1000):
        activity.record(replace(REFUSED, repository=f"team/{number}"))
    assert [refusal.agent for refusal in activity.refusals()] == ["static:builder-1", "static:builder-2"]

    for number in range(1000):
        activity.record(by(f"other-{number}"))
    assert len(activity.refusals()) == MAX_REFUSALS


async def test_a_sample_has_what_happened_in_its_minute() -> None:
    """Bytes and requests of a sample are those since the sample before it; the last one is not complete."""
    clock, traffic = Clock(), {CALLER.agent: Traffic(to_agent=100, from_agent=10)}
    activity = RecentActivity(clock, traffic)
    activity.record(ALLOWED)
    activity.record(REFUSED)
    clock.now += 60
    await activity.sample()
    traffic[CALLER.agent].to_agent += 7
    clock.now += 10

    first, current = activity.last_hour()
    assert (first.seconds, first.to_agent, first.from_agent, first.requests, first.refused) == (60, 100, 10, 2, 1)
    assert (current.seconds, current.to_agent, current.from_agent, current.requests) == (10, 7, 0, 0)


async def test_an_hour_of_samples_is_kept() -> None:
    """Older samples are dropped."""
    activity = RecentActivity(Clock())
    for _ in range(3 * MINUTES):
        await activity.sample()

    assert len(activity.last_hour()) == MINUTES + 1


def test_probes_are_not_requests() -> None:
    """The controller's own probes are not counted."""
    activity = RecentActivity(Clock())
    activity.record(replace(ALLOWED, action="well-known"))

    assert activity.last_hour()[-1].requests == 0


async def test_an_agent_that_is_forgotten_makes_no_minute_negative() -> None:
    """The bytes of agents that are forgotten are taken out of the base of the next sample."""
    gone = Traffic(to_agent=500, from_agent=50)
    traffic = {CALLER.agent: Traffic(to_agent=100), AgentId("static:gone"): gone}
    activity = RecentActivity(Clock(), traffic)
    await activity.sample()
    activity.forget([traffic.pop(AgentId("static:gone"))])
    traffic[CALLER.agent].to_agent += 1

    current = activity.last_hour()[-1]
    assert (current.to_agent, current.from_agent) == (1, 0)
