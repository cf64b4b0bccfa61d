"""What `check` learns of this machine's registry from the members of the cluster that run; see `shared_registry.py`.

It announces an upload as a member does, also before this controller has ever been started, and waits for the reports.
"""

import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnelmgr.config import Config
from tunnelmgr.core.registry_sharing import CheckUpload, Sharing, SharingReport
from tunnelmgr.core.tunnel import Endpoint, registries
from tunnelmgr.errors import StoreError
from tunnelmgr.gate.upload_check import keep_upload
from tunnelmgr.store.connect import check_database, open_registry_proofs

if TYPE_CHECKING:
    from tunnelmgr.store.registry_proofs import RegistryProofs

REPORTS_WITHIN: Final = 10.0
"""Seconds that a member has for its report; it looks for uploads every two."""
INTERVAL: Final = 0.2
"""Seconds between two looks for reports."""
_WRONG: Final = {
    Sharing.OTHER_STORAGE: "does not have this machine's uploads: configure the same storage for both registries",
    Sharing.OTHER_SECRET: "rejects this machine's uploads: set the same http.secret in both registries' configurations",
    Sharing.NO_ANSWER: "did not answer when asked for an upload of this machine",
}


@dataclass(slots=True)
class SharingCheck:
    """The members with which this machine shares its registry, and sentences about all others."""

    shared: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_sharing(config: Config) -> SharingCheck:
    """Ask the members that run for an upload in each of this machine's registries; blocks."""
    settings, found = config.controller, SharingCheck()
    asked = registries(config.forwards())
    try:
        living = check_database(settings.state, settings.password_file).rules.keys() - {settings.name}
        if not living:
            return found
        with closing(open_registry_proofs(settings.state, settings.name, settings.password_file)) as proofs:
            for registry in asked:
                _ask(proofs, settings.name, registry, sorted(living), found)
    except StoreError as failed:
        found.notes.append(f"not checked: {failed}")
    found.shared = [name for name in found.shared if found.shared.count(name) == len(asked)]
    found.shared = list(dict.fromkeys(found.shared))
    return found


def _ask(proofs: "RegistryProofs", me: str, registry: Endpoint, living: list[str], found: SharingCheck) -> None:
    started = keep_upload(registry, proofs.read().location_of(me, str(registry)))
    if started.sharing is Sharing.READ_ONLY:
        found.notes.append(f"{registry} is read-only; after the start, `tunnelmgr members` shows whether it is shared")
        return
    if not started.location:
        found.problems.append(started.error)
        return
    upload = CheckUpload(uuid.uuid4().hex, me, str(registry), started.location)
    proofs.announce(upload)
    reports = _reports(proofs, upload, living)
    for name in living:
        report = reports.get(name)
        if report is None:
            found.notes.append(f"{name} has not reported within {REPORTS_WITHIN:g} s")
        elif report.sharing in _WRONG:
            found.problems.append(f"the registry of {name} {_WRONG[report.sharing]}")
        else:
            found.shared.append(name)


def _reports(proofs: "RegistryProofs", upload: CheckUpload, living: list[str]) -> dict[str, SharingReport]:
    """Return the reports about an upload by member, once all have reported or the time is over."""
    deadline = time.monotonic() + REPORTS_WITHIN
    while True:
        reports = {one.member: one for one in proofs.read().reports if one.upload == upload.id}
        if reports.keys() >= set(living) or time.monotonic() > deadline:
            return reports
        time.sleep(INTERVAL)
