"""Faults that wait for the next call of an action, or stay until they are cleared."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Fault:
    """One way for a call to go wrong."""

    code: str = ""  # the error's code, such as RequestLimitExceeded; empty if the call succeeds after the stall
    status: int = 503
    forever: bool = False  # stays until cleared, instead of serving one call
    later_pages: bool = False  # spares the first page of a listing
    stall: float = 0.0  # seconds before anything is answered
    empty: bool = False  # a listing succeeds and has nothing in it; who asks by id gets an answer as ever


class Faults:
    """The faults in store, by action; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: dict[str, list[Fault]] = {}
        self._cleared = threading.Event()

    def add(self, action: str, faults: Iterable[Fault]) -> None:
        """Store faults for an action behind those that it has."""
        with self._lock:
            self._stored.setdefault(action, []).extend(faults)

    def take(self, action: str, *, first_page: bool, by_id: bool = False) -> Fault | None:
        """Return what goes wrong with this call, after its stall, or None."""
        with self._lock:
            stored = self._stored.get(action, [])
            served = (fault for fault in stored if not ((first_page and fault.later_pages) or (by_id and fault.empty)))
            found = next(served, None)
            if found and not found.forever:
                stored.remove(found)
            cleared = self._cleared
        if found and found.stall:
            cleared.wait(found.stall)
        return found

    def clear(self) -> None:
        """Forget every fault and let the stalled calls go on."""
        with self._lock:
            self._stored.clear()
            self._cleared.set()
            self._cleared = threading.Event()
