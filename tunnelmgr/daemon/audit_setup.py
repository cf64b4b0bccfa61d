"""Makes the audit log that a configuration describes, with its seals and the collectors that get copies."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tunnelmgr.config import SYSLOG, AuditForwardConfig, Config
from tunnelmgr.core.health import AuditHealth
from tunnelmgr.observability.audit_chain import Head
from tunnelmgr.observability.audit_cursor import Cursor
from tunnelmgr.observability.audit_file import ChainSettings
from tunnelmgr.observability.audit_forward import AuditForward, Destination
from tunnelmgr.observability.audit_log import AuditLog
from tunnelmgr.observability.audit_seal import SealingKey
from tunnelmgr.observability.audit_tail import AuditTail

_CLOSE_TIMEOUT: Final = 3.0
"""Seconds in which the collectors get the last entries at a stop; the next start sends what they lack."""


@dataclass(frozen=True, slots=True)
class AuditParts:
    """The audit log, and what forwards it."""

    log: AuditLog
    forwards: tuple[AuditForward, ...] = ()

    async def start(self) -> None:
        """Start the log, then the forwarding."""
        await self.log.start()
        for forward in self.forwards:
            forward.start()

    def close(self) -> None:
        """Write the last entries, and forward them; blocks for some seconds if the disk or a collector fails."""
        self.log.close()
        for forward in self.forwards:
            forward.stop()
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for forward in self.forwards:
            forward.join(max(0.0, deadline - time.monotonic()))

    def health(self) -> AuditHealth:
        """Return the health of all parts."""
        forwards = tuple(forward.health(self.log.written) for forward in self.forwards)
        return AuditHealth(self.log.error, self.log.lost, self.log.lost_recently, forwards)


def make_audit(config: Config, clock: Callable[[], float], required: Callable[[], bool]) -> AuditParts:
    """Return the parts of the audit, not started; raises ConfigError if the key for seals cannot be used."""
    settings = config.controller
    signer = SealingKey.load(settings.audit_key) if settings.audit_key else None
    forwards = [make_forward(settings.audit, entry) for entry in config.audit_forward if settings.audit]
    minimum_head = max((forward.confirmed for forward in forwards), key=lambda head: head.sequence, default=Head())
    chain = ChainSettings(signer, settings.audit_seal_interval, minimum_head)
    return AuditParts(AuditLog(settings.audit, settings.name, clock, required, chain), tuple(forwards))


def make_forward(audit: Path, config: AuditForwardConfig) -> AuditForward:
    """Return what forwards the audit log in a file to a collector, after the entries that it has."""
    return AuditForward(config.name, AuditTail(audit), Cursor.of(audit, config.name), _maker(config))


def _maker(config: AuditForwardConfig) -> Callable[[], Destination]:
    """Return what makes a connection to a collector. Few configurations need these imports."""
    if config.place.scheme == SYSLOG:
        from tunnelmgr.observability.audit_syslog import SyslogDestination  # noqa: PLC0415 - as above

        return partial(SyslogDestination, config)
    from tunnelmgr.observability.audit_http import HttpDestination  # noqa: PLC0415 - as above

    return partial(HttpDestination, config)
