"""Permission to dial and to compute a handshake; `tunnel/admission.py` grants it."""

from types import TracebackType
from typing import Final, Protocol, Self


class ReceiveProgress(Protocol):
    """Shows whether a server still sends; `dialer.py` implements it."""

    def receive_count(self) -> int:
        """Return a number that changes whenever bytes have arrived from the server."""
        ...


class DialPermit(Protocol):
    """Permission for one dial; a context manager that gives everything back at its end."""

    async def acquire_place(self) -> None:
        """Wait until the dial may connect."""

    async def acquire_slot(self, progress: ReceiveProgress) -> None:
        """Wait until the dial may compute its handshake; called once the server has sent its first bytes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Unlimited:
    """A permit that never waits."""

    async def acquire_place(self) -> None:
        """Return at once."""

    async def acquire_slot(self, progress: ReceiveProgress) -> None:
        """Return at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give nothing back."""


UNLIMITED: Final[DialPermit] = _Unlimited()
"""For a dial that competes with no other, such as that of `tunnelmgr check`."""
