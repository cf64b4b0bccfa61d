"""Why a worker ended, or why an agent is refused."""

from dataclasses import dataclass

from tunnelmgr.errors import Pace


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended: an error's code, pace and message."""

    code: str
    retry: Pace
    message: str
