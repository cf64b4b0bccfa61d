"""Faults of a cloud's API: each affects the next call of an action, or every call until it is cleared."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Fault:
    """A failure of one call."""

    code: str = ""  # the error's code, such as RequestLimitExceeded; empty: the call succeeds after the stall
    status: int = 503
    forever: bool = False  # affects every call until cleared, not one
    later_pages: bool = False  # exempts the first page of a listing
    stall: float = 0.0  # seconds before the answer
    empty: bool = False  # a listing succeeds and is empty; requests by id are not affected


class Faults:
    """The pending faults by action; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, list[Fault]] = {}
        self._cleared = threading.Event()

    def add(self, action: str, faults: Iterable[Fault]) -> None:
        """Add faults for an action, after those that are pending."""
        with self._lock:
            self._pending.setdefault(action, []).extend(faults)

    def take(self, action: str, *, first_page: bool, by_id: bool = False) -> Fault | None:
        """Return the fault of this call, after its stall, or None."""
        with self._lock:
            pending = self._pending.get(action, [])
            matching = (
                fault for fault in pending if not ((first_page and fault.later_pages) or (by_id and fault.empty))
            )
            found = next(matching, None)
            if found and not found.forever:
                pending.remove(found)
            cleared = self._cleared
        if found and found.stall:
            cleared.wait(found.stall)
        return found

    def clear(self) -> None:
        """Remove every fault and resume the stalled calls."""
        with self._lock:
            self._pending.clear()
            self._cleared.set()
            self._cleared = threading.Event()
