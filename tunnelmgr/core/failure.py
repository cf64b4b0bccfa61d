"""Why a worker ended, or why an agent is refused."""

from dataclasses import dataclass
from typing import Final

from tunnelmgr.errors import Pace

INTERNAL: Final = "internal"
"""The code of a fault of this program."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended: an error's code, pace and message."""

    code: str
    retry: Pace
    message: str
