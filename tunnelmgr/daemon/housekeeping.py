"""Scheduled jobs: registry checks, forgetting agents, the watchdog, loop lag."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr.controller import Controller
from tunnelmgr.core.events import RetentionExpired
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.daemon.garbage import collect
from tunnelmgr.daemon.loop_lag import watch_lag
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.daemon.registry_health import RegistryWatch
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.observability.systemd import notify, watchdog_interval

MEMORY = 7 * 86400.0
"""Seconds for which an agent that left is remembered, with its quarantine."""
REGISTRY_CHECK = 10.0
"""Seconds between two checks of the registry."""
STATUS_INTERVAL = 10.0
"""Seconds between two status lines for systemd if it sets no watchdog."""


def make_scheduler() -> AsyncIOScheduler:
    """Return a scheduler whose jobs run late rather than never, and once rather than several times."""
    defaults = {"coalesce": True, "misfire_grace_time": None, "max_instances": 1}
    return AsyncIOScheduler(timezone="UTC", job_defaults=defaults)


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The scheduled jobs of the daemon; `wall` is the wall clock, by which seeds expire."""

    scheduler: AsyncIOScheduler
    controller: Controller
    registry: RegistryWatch
    metrics: Metrics
    activity: RecentActivity
    clock: Callable[[], float]
    wall: Callable[[], float]

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Schedule the jobs and return the tasks that run until they are cancelled."""
        self.scheduler.add_job(self.registry.check_soon, "interval", seconds=REGISTRY_CHECK)
        self.scheduler.add_job(self.activity.sample, "interval", minutes=1)
        self.scheduler.add_job(self.forget, "interval", hours=1)
        self.scheduler.add_job(self.notify_systemd, "interval", seconds=watchdog_interval() or STATUS_INTERVAL)
        self.scheduler.start()
        return [
            tasks.create_task(self.registry.run(), name="registry check"),
            tasks.create_task(watch_lag(self.metrics.measurements.record_lag), name="loop lag"),
        ]

    async def forget(self) -> None:
        """Forget agents that left long ago, and collect garbage."""
        traffic = self.activity.traffic
        self.metrics.traffic.add(self.controller.world, traffic)  # as long as the agents' groups are known
        self.controller.report(RetentionExpired(self.clock() - MEMORY, self.wall()))
        gone = [id_ for id_ in traffic if id_ not in self.controller.world.records]
        self.metrics.traffic.forget(gone)
        self.activity.forget(traffic.pop(id_) for id_ in gone)
        collect()

    async def notify_systemd(self) -> None:
        """Tell systemd that the loop runs; this job runs in it."""
        notify("WATCHDOG=1", f"STATUS={self.summary()}")

    def summary(self) -> str:
        """Return one line about the fleet."""
        phases = [status.phase for status in self.controller.world.tunnels.values()]
        return f"{phases.count(Phase.UP)} of {len(phases)} agents up, {phases.count(Phase.QUARANTINED)} quarantined"
