"""The last hour of traffic and the last refusals, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from tunnelmgr.core.activity import Refusal, TrafficSample
from tunnelmgr.core.agent import AgentId
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.traffic import Traffic

MINUTES: Final = 60
"""Samples that are kept, one a minute."""
MAX_REFUSALS: Final = 100
"""Refusals that are kept. One agent has at most one for each forward, action and rule, so that it cannot displace the
others by asking for many names."""

_Key = tuple[str, ...]


class _Counts(NamedTuple):
    """Counters since the start: bytes in each direction, requests and refusals."""

    to_agent: int = 0
    from_agent: int = 0
    requests: int = 0
    refused: int = 0


@dataclass(slots=True)
class RecentActivity:
    """Counts requests, keeps refusals, and takes a sample of all counters each minute.

    `traffic` has the counters of each agent; `daemon/channel_server.py` adds them.
    """

    clock: Callable[[], float]
    traffic: dict[AgentId, Traffic] = field(default_factory=dict)
    _requests: int = 0
    _refused: int = 0
    _before: _Counts = field(default_factory=_Counts)
    _sampled: float = field(init=False)
    _samples: deque[TrafficSample] = field(default_factory=lambda: deque(maxlen=MINUTES))
    _refusals: dict[_Key, Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sampled = self.clock()

    def record(self, request: RequestRecord) -> None:
        """Count a request, unless it is a probe, and keep it if it was refused."""
        if request.verdict == "allowed":
            self._requests += request.action != "well-known"
            return
        self._requests += 1
        self._refused += 1
        caller = request.caller
        key = (caller.agent, caller.forward, request.action, request.verdict, request.rule)
        before, now = self._refusals.pop(key, None), self.clock()
        self._refusals[key] = _refusal(request, now, before)
        if len(self._refusals) > MAX_REFUSALS:
            del self._refusals[next(iter(self._refusals))]

    def refusals(self) -> list[Refusal]:
        """Return the refusals, newest first."""
        return list(reversed(self._refusals.values()))

    async def sample(self) -> None:
        """Take the sample of the minute that ends now; a job of the scheduler."""
        self._samples.append(self._current())
        self._before, self._sampled = self._counts(), self.clock()

    def last_hour(self) -> list[TrafficSample]:
        """Return the samples, oldest first, with the minute that has not ended."""
        return [*self._samples, self._current()]

    def forget(self, gone: Iterable[Traffic]) -> None:
        """Take counters that are about to be removed out of the last sample's base, so that no minute is negative."""
        for one in gone:
            before = self._before
            self._before = before._replace(
                to_agent=before.to_agent - one.to_agent, from_agent=before.from_agent - one.from_agent
            )

    def _current(self) -> TrafficSample:
        now = self.clock()
        to_agent, from_agent, requests, refused = (
            new - old for new, old in zip(self._counts(), self._before, strict=True)
        )
        return TrafficSample(now, now - self._sampled, to_agent, from_agent, requests, refused)

    def _counts(self) -> _Counts:
        to_agent = from_agent = 0
        for one in self.traffic.values():
            to_agent += one.to_agent
            from_agent += one.from_agent
        return _Counts(to_agent, from_agent, self._requests, self._refused)


def _refusal(request: RequestRecord, now: float, before: Refusal | None) -> Refusal:
    caller = request.caller
    new = Refusal(
        at=now,
        since=now,
        count=1,
        agent=caller.agent,
        group=caller.group,
        forward=caller.forward,
        method=request.method,
        action=request.action,
        repository=request.repository,
        reference=request.reference,
        verdict=request.verdict,
        rule=request.rule,
        status=request.status,
    )
    return new if before is None else replace(new, since=before.since, count=before.count + 1)
