"""What a dial asks before it connects and before it computes; `tunnel/admission.py` answers."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self


class DialPermit(Protocol):
    """Permission for one dial; a context manager that gives everything back at its end."""

    async def dialling(self) -> None:
        """Wait until the dial may connect."""

    async def computing(self, heard: Callable[[], int]) -> None:
        """Wait until the dial may compute its handshake, once the server has sent its first bytes.

        `heard` returns a number that changes whenever bytes have arrived from the server.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Unlimited:
    """A permit that never waits."""

    async def dialling(self) -> None:
        """Return at once."""

    async def computing(self, heard: Callable[[], int]) -> None:
        """Return at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give nothing back."""


UNLIMITED: Final[DialPermit] = _Unlimited()
"""For a dial that competes with no other, such as one of `tunnelmgr check`."""
