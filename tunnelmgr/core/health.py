"""The health of the daemon and its parts, and traffic counters: what status and metrics show beside the world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.ports import WorldView
from tunnelmgr.core.registry_sharing import SharingReport


class TrafficCounters(Protocol):
    """Counters of one agent's traffic: channels opened, and bytes in each direction."""

    channels: int
    to_agent: int
    from_agent: int


@dataclass(frozen=True, slots=True)
class RegistryHealth:
    """Whether the registry answers, and whether it listens on loopback only (None if that cannot be determined).

    `checked_at` is the time of the check, in seconds since the epoch, None before the first check.
    """

    reachable: bool
    loopback_only: bool | None
    error: str | None = None
    checked_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AuditForwardHealth:
    """How far a collector of the audit log has got, and why it does not get further.

    `sequence` is the number of the last entry that it has confirmed, at `success_at` in seconds since the epoch.
    `behind` entries of the log are newer, `dropped` were removed by rotation before it could take them.
    """

    name: str
    error: str | None
    sequence: int
    behind: int
    dropped: int
    success_at: float | None


@dataclass(frozen=True, slots=True)
class AuditHealth:
    """Why the audit log cannot be written, how many entries were lost, and whether some were lost recently."""

    error: str | None = None
    lost: int = 0
    lost_recently: bool = False
    forwards: Sequence[AuditForwardHealth] = ()


@dataclass(frozen=True, slots=True)
class FastPathHealth:
    """Whether bulk data bypasses asyncssh; if not, the reason."""

    active: bool = True
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CacheHealth:
    """The cache: its folder, its size and what is used of it in bytes, the number of blobs, and counts since the start.

    `hits` were served from the cache, `misses` were fetched into it, `bypassed` were left to the registry; `octets` are
    the bytes that agents were sent from it.
    """

    path: str
    size: int
    used: int
    blobs: int
    hits: int
    misses: int
    bypassed: int
    octets: int


@dataclass(frozen=True, slots=True)
class LimitHealth:
    """One limit of a group: how many wait now, and since the start the waits, their seconds, and requests refused."""

    group: str
    limit: str
    waiting: int
    waits: int
    waited_s: float
    refused: int


@dataclass(frozen=True, slots=True)
class DialCounts:
    """Dials and host key scans: those that wait to connect or to compute a handshake, and all that were admitted."""

    waiting_to_connect: int = 0
    waiting_to_compute: int = 0
    admitted: int = 0


@dataclass(frozen=True, slots=True)
class TracingHealth:
    """What has become of the spans since the start, and why the collector did not take the last ones."""

    exported: int
    failed: int
    dropped: int
    error: str | None


@dataclass(frozen=True, slots=True)
class DaemonHealth:
    """The state of the daemon itself; `uptime_s` is in seconds, `sharing` has the reports of all members."""

    controller: str
    version: str
    uptime_s: float
    registry: RegistryHealth
    store_error: str | None
    audit: AuditHealth = AuditHealth()
    fast_path: FastPathHealth = FastPathHealth()
    sharing: Sequence[SharingReport] = ()
    cache: CacheHealth | None = None
    limits: Sequence[LimitHealth] = ()
    dials: DialCounts = DialCounts()
    tracing: TracingHealth | None = None


class Telemetry(WorldView, Protocol):
    """What status and metrics read from the daemon; `daemon/operations.py` implements it."""

    @property
    def traffic(self) -> Mapping[AgentId, TrafficCounters]:
        """Traffic counters by agent."""
        ...

    def health(self) -> DaemonHealth:
        """Return the daemon's own health."""
        ...
