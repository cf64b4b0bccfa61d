"""Waiting for the daemon, for `status --wait`: in scripts, and as the health check of a container."""

import time
from enum import StrEnum
from typing import Any

from tunnelmgr.control.client import PATIENCE, ControlClient
from tunnelmgr.errors import DaemonNotRunningError

INTERVAL = 0.25
"""Seconds between two questions."""


class Condition(StrEnum):
    """What to wait for."""

    ALIVE = "ALIVE"  # the daemon answers: `/healthz`
    READY = "READY"  # every check of `/readyz` holds


def wait_for(condition: Condition, daemon: ControlClient, seconds: float) -> list[dict[str, Any]]:
    """Ask until the condition holds or the time is over, at least once, and return the checks of the last answer.

    Raises DaemonNotRunningError if nothing answers at the end.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        in_time = left > 0
        try:
            checks = _ask(condition, daemon.waiting(min(PATIENCE, max(INTERVAL, left))))
        except DaemonNotRunningError:
            if not in_time:
                raise
        else:
            if not in_time or all(check["ok"] for check in checks):
                return checks
        time.sleep(min(INTERVAL, max(0.0, deadline - time.monotonic())))


def _ask(condition: Condition, daemon: ControlClient) -> list[dict[str, Any]]:
    if condition is Condition.READY:
        return daemon.readiness()
    return [{"check": "daemon", "ok": daemon.alive(), "message": "answers"}]
