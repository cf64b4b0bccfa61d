"""Verifies that this member's registry and those of the other members are one; see `core/registry_sharing.py`.

A turn looks for the uploads that other members have announced, and announces this member's own if that is due. Without
the database, the last reports stand: `status` and `members` show that it is away. Pull-through caches are left out:
each member has its own, and no upload can begin there.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from tunnelmgr.config import ControllerConfig
from tunnelmgr.core.ports import WorldView
from tunnelmgr.core.registry_sharing import CheckUpload, Sharing, SharingReport, SharingState
from tunnelmgr.core.tunnel import Endpoint, registries
from tunnelmgr.daemon.registry_health import HasForwards
from tunnelmgr.errors import StoreError
from tunnelmgr.gate.upload_check import find_upload, keep_upload
from tunnelmgr.store.connect import open_registry_proofs, sqlite_file
from tunnelmgr.threads import CallingThread, in_thread

log = structlog.get_logger(__name__)

TURN: Final = 2.0
"""Seconds between two looks for uploads of other members."""
NEVER: Final = float("-inf")


class SharingDatabase(Protocol):
    """Where members meet; every method blocks and raises StoreError. `store/registry_proofs.py` is one."""

    def start_over(self) -> None:
        """Forget what an earlier process of this member has reported."""
        ...

    def read(self) -> SharingState:
        """Return the uploads and the latest reports of all members."""
        ...

    def announce(self, upload: CheckUpload) -> None:
        """Show this member's upload in a registry to the other members, in place of the last one."""
        ...

    def report(self, report: SharingReport) -> None:
        """Write a report in place of the last one about the same member and registry."""
        ...


class SharedRegistry:
    """This member's part in the verification; `reports` are the latest of all members."""

    def __init__(
        self,
        me: str,
        database: SharingDatabase,
        view: WorldView,
        configuration: HasForwards,
        clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._database = database
        self._view = view
        self._configuration = configuration
        self._clock = clock
        self._thread = CallingThread("shared registry")
        self._wake = asyncio.Event()
        self._announced: dict[str, float] = {}
        self._logged: dict[tuple[str, str], SharingReport] = {}
        self.reports: Sequence[SharingReport] = ()

    def check_soon(self) -> None:
        """Verify now, as after a change of the configuration; a verification under way is followed by another one."""
        self._wake.set()

    async def run(self) -> None:
        """Verify until cancelled."""
        self._thread.start()
        started = False
        try:
            while True:
                if self._wake.is_set():
                    self._wake.clear()
                    self._announced.clear()
                with suppress(StoreError):  # the membership reports a database that does not answer
                    if not started:
                        await self._thread.call(self._database.start_over)
                        started = True
                    await self._turn()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TURN):
                        await self._wake.wait()
        finally:
            self._thread.close()

    async def _turn(self) -> None:
        others = self._others()
        if others is None:
            return
        state = await self._thread.call(self._database.read)
        self.reports = state.reports
        self._log()
        registries = self._registries()
        for upload in state.unanswered(self._me, registries.keys()):
            sharing, error = await in_thread(find_upload, registries[upload.registry], upload.location)
            await self._report(upload.writer, upload.registry, upload.id, sharing, error)
        for name, registry in registries.items():
            now = self._clock()
            if state.is_due(self._me, name, others, now - self._announced.get(name, NEVER)):
                await self._announce(registry, state.location_of(self._me, name))
                self._announced[name] = now

    async def _announce(self, registry: Endpoint, location: str) -> None:
        """Announce this member's upload under a new id, so that the others look for it."""
        started = await in_thread(keep_upload, registry, location)
        upload = CheckUpload(uuid.uuid4().hex, self._me, str(registry), started.location)
        if started.location:
            await self._thread.call(self._database.announce, upload)
        await self._report(self._me, upload.registry, upload.id, started.sharing, started.error)

    async def _report(self, writer: str, registry: str, upload: str, sharing: Sharing, error: str) -> None:
        report = SharingReport(self._me, writer, registry, upload, sharing, error)
        await self._thread.call(self._database.report, report)

    def _registries(self) -> dict[str, Endpoint]:
        return {str(registry): registry for registry in registries(self._configuration.forwards)}

    def _others(self) -> frozenset[str] | None:
        """Return the other members that are alive, None before this one has joined."""
        cluster = self._view.world.cluster
        if cluster is None or self._me not in cluster.members:
            return None
        return frozenset(name for name, member in cluster.members.items() if member.alive and name != self._me)

    def _log(self) -> None:
        """Log what has changed in this member's own reports."""
        for report in self.reports:
            key = (report.writer, report.registry)
            before = self._logged.get(key)
            if report.member != self._me or (before is not None and before.sharing is report.sharing):
                continue
            self._logged[key] = report
            facts = {"member": report.writer, "registry": report.registry}
            if report.sharing.is_problem:
                log.error("registry not shared", sharing=report.sharing.value, error=report.error or None, **facts)
            else:
                log.info("registry shared", sharing=report.sharing.value, **facts)


def make_shared_registry(
    settings: ControllerConfig, view: WorldView, configuration: HasForwards, clock: Callable[[], float]
) -> SharedRegistry | None:
    """Return the verification for a controller whose state is in a database; None for one with a file."""
    if sqlite_file(settings.state) is not None:
        return None
    database = open_registry_proofs(settings.state, settings.name, settings.password_file)
    return SharedRegistry(settings.name, database, view, configuration, clock)
