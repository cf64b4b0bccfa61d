"""Audit entries and log lines for requests and for the steps of an agent's history.

An agent pays for the entries that it causes. Equal requests (`_key`) are folded: the first is written at once, those
that follow within `FOLD` seconds become one entry with a `count`, the time of the first (`since`) and of the last.
After a burst, an agent may cause `RATE` entries a second and waits for more; see `AuditTrail.throttle`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.ports import WorldView
from tunnelmgr.core.rate_limit import TokenBucket
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.world import HistoryEntry, Record
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.observability.audit_log import AuditLog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

STEPS = frozenset(
    {
        "evidence",
        "dialled",
        "bound",
        "probed",
        "lost",
        "failed",
        "closed",
        "left",
        "rebuilt",
        "regrouped",
        "quarantined",
        "released",
        "retry",
    }
)
"""The steps of an agent's history that are audited; the others say only that it is being waited for."""
ACTIONS = frozenset({"pull", "push", "delete", "catalog"})
"""The actions that are audited if they are allowed; refusals are always audited."""
READS = frozenset({"base", "well-known", "pull", "catalog"})
"""Frequent actions: if allowed, they are logged at debug level only."""
FOLD: Final = 5.0
"""Seconds within which equal requests become one entry."""
RATE: Final = 80.0
"""Entries a second that one agent may cause on average: with the log, about 60 kB/s."""
BURST: Final = 200.0
"""Entries that one agent may cause at once."""
ROOM_TIMEOUT: Final = 5.0
"""Seconds that an agent waits for room in the audit queue; then its entries are lost, and counted."""


@dataclass(slots=True)
class _Repeats:
    """Requests equal to one that has been written, waiting to be written as one entry."""

    until: float
    since: float = 0.0
    count: int = 0
    last: RequestRecord | None = None

    def add(self, request: RequestRecord, now: float) -> None:
        self.count += 1
        if self.last is None:
            self.since, self.last = now, request
            return
        self.last = replace(
            request,
            bytes_to_agent=self.last.bytes_to_agent + request.bytes_to_agent,
            bytes_from_agent=self.last.bytes_from_agent + request.bytes_from_agent,
            took=max(self.last.took, request.took),
        )


@dataclass(slots=True)
class AuditTrail:
    """Writes audit entries and log lines with the agent's identity. For use on the event loop only."""

    audit: AuditLog
    view: WorldView
    clock: Callable[[], float]
    _repeats: dict[tuple[object, ...], _Repeats] = field(default_factory=dict)
    _buckets: dict[AgentId, TokenBucket] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Audit a step of an agent's history."""
        if entry.step in STEPS:
            count = entry.count if entry.count > 1 else None
            facts = _identity(record) | {"detail": entry.detail, "uid": entry.uid, "count": count}
            self.audit.note(f"tunnel-{entry.step}", **facts)

    def record(self, request: RequestRecord) -> None:
        """Audit a request that came through the gate, at once or folded with equal ones."""
        key, now = _key(request), self.clock()
        repeats = self._repeats.get(key)
        if repeats is None:
            self._repeats[key] = _Repeats(now + FOLD)
            self._write(request)
            self._set_timer()
        else:
            repeats.add(request, now)

    async def throttle(self, agent: AgentId) -> None:
        """Wait until the agent may cause more entries, by its rate and by the room in its queue."""
        bucket = self._buckets.get(agent)
        if bucket is not None and (seconds := bucket.wait(self.clock())):
            await asyncio.sleep(seconds)
        if not (self.audit.full(agent) and self.audit.healthy):
            return  # if the disk fails, entries are lost and no agent waits
        try:
            async with asyncio.timeout(ROOM_TIMEOUT):
                await self.audit.room(agent)
        except TimeoutError:
            return

    async def flush(self) -> None:
        """Write everything that is folded so far, for at most `ROOM_TIMEOUT` seconds if the disk is slow."""
        folded = [repeats.last for repeats in self._repeats.values() if repeats.last is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_TIMEOUT):
                for request in folded:
                    if self.audit.healthy:
                        await self.audit.room(request.caller.agent)
                    self._write_repeats(self._repeats.pop(_key(request)))
        for repeats in self._repeats.values():
            self._write_repeats(repeats)
        self._repeats.clear()

    def _set_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FOLD / 5, self._tick)

    def _tick(self) -> None:
        """Write what has been folded for long enough; requests that continue are folded further."""
        self._timer = None
        now = self.clock()
        for key, repeats in list(self._repeats.items()):
            if now < repeats.until:
                continue
            if repeats.last is not None:
                if self.audit.full(repeats.last.caller.agent) and self.audit.healthy:
                    continue  # folded further until there is room
                self._write_repeats(repeats)
                self._repeats[key] = _Repeats(now + FOLD)
            else:
                del self._repeats[key]
        self._buckets = {agent: bucket for agent, bucket in self._buckets.items() if not bucket.idle(now)}
        if self._repeats or self._buckets:
            self._set_timer()

    def _write_repeats(self, repeats: _Repeats) -> None:
        if repeats.last is not None:
            self._write(repeats.last, count=repeats.count, since=timestamp(repeats.since))

    def _write(self, request: RequestRecord, count: int | None = None, since: str | None = None) -> None:
        allowed = request.verdict == "allowed"
        if not allowed or request.action in ACTIONS:
            self._buckets.setdefault(request.caller.agent, TokenBucket(RATE, BURST)).take(self.clock())
            self._audit(request, count, since)
        _log(request, count)

    def _audit(self, request: RequestRecord, count: int | None, since: str | None) -> None:
        self.audit.note(
            f"request-{request.verdict}",
            **self._caller(request.caller.agent),
            forward=request.caller.forward,
            channel=request.caller.channel,
            method=request.method,
            action=request.action,
            repository=request.repository or None,
            reference=request.reference or None,
            verdict="allow" if request.verdict == "allowed" else "refuse",
            rule=request.rule or None,
            status=request.status,
            bytes_to_agent=request.bytes_to_agent,
            bytes_from_agent=request.bytes_from_agent,
            duration_ms=round(request.took * 1000, 1),
            count=count,
            since=since,
        )

    def _caller(self, agent: AgentId) -> dict[str, Any]:
        record = self.view.world.records.get(agent)
        return {"agent": agent} if record is None else _identity(record)


def _key(request: RequestRecord) -> tuple[object, ...]:
    """Return what equal requests have in common."""
    return (
        request.caller.agent,
        request.caller.forward,
        request.method,
        request.action,
        request.repository,
        request.reference,
        request.verdict,
        request.rule,
        request.status,
        request.error,
    )


def _log(request: RequestRecord, count: int | None) -> None:
    """Log one line: failures as warnings, pushes, deletes and refusals as information, reads for debugging."""
    facts: dict[str, Any] = {
        "agent": request.caller.agent,
        "group": request.caller.group,
        "forward": request.caller.forward,
        "action": str(request.action),
        "repository": request.repository,
        "reference": request.reference,
        "verdict": request.verdict,
        "status": request.status,
        "bytes": request.bytes_to_agent + request.bytes_from_agent,
        "took": round(request.took, 4),
    }
    if count is not None:
        facts["count"] = count
    if request.error:
        log.warning("request failed", **facts, error=request.error, reason=request.reason)
    elif request.verdict == "allowed" and request.action in READS:
        log.debug("request", **facts)
    else:
        log.info("request", **facts)


def _identity(record: Record) -> dict[str, Any]:
    trust = record.trust or record.proved
    return {
        "agent": record.agent.id,
        "incarnation": record.agent.incarnation or None,
        "group": record.agent.group,
        "address": record.agent.addresses[0] if record.agent.addresses else None,
        "trust": trust.method.value if trust else None,
        "key": " ".join(trust.fingerprints) if trust else None,
    }
