"""One way to poll every source: in a thread, one at a time, with a deadline; a failure keeps the last snapshot."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from tunnelmgr.config import Source
from tunnelmgr.core.events import AgentsDiscovered, DiscoveryFailed, Event
from tunnelmgr.errors import DiscoveryError

log = structlog.get_logger(__name__)

PATIENCE = 120.0
"""Seconds after which a poll that has not answered is given up; the clients' own timeouts are shorter."""


@dataclass(slots=True)
class Poller:
    """Polls one source whenever `bell` is rung, and reports what it said."""

    source: Source
    report: Callable[[Event], None]
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    patience: float = PATIENCE
    _failing: str | None = None
    # A thread of its own: a source that hangs takes none from the others, and is not asked twice at a time.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="poll"))

    async def run(self) -> None:
        """Poll now and at each ring, until cancelled."""
        try:
            while True:
                await self.poll()
                await self.bell.wait()
                self.bell.clear()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def poll(self) -> None:
        """Ask the source once and report its answer, or that it gave none."""
        name = self.source.config.name
        try:
            async with asyncio.timeout(self.patience):
                snapshot = await asyncio.get_running_loop().run_in_executor(self._thread, self.source.discover)
        except TimeoutError:
            self._failed(f"no answer within {self.patience:g} s")
        except DiscoveryError as failed:
            self._failed(failed.reason)
        except Exception as broken:  # a bulkhead: sources are plug-ins, and one must not take the others down
            log.exception("source failed", source=name)
            self._failed(f"{broken!r}; the log has the trace")
        else:
            self._note("; ".join(snapshot.failures) or None)
            self.report(AgentsDiscovered(name, snapshot))

    def _failed(self, reason: str) -> None:
        self._note(reason)
        self.report(DiscoveryFailed(self.source.config.name, reason))

    def _note(self, failing: str | None) -> None:
        """Log a change between answering and failing once, not at every poll."""
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            log.warning("source fails; its last snapshot stays", source=self.source.config.name, error=failing)
        else:
            log.info("source answers again", source=self.source.config.name)
