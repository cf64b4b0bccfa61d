"""What the page says of one agent: its phase, why it has no tunnel, and what to do."""

import shlex
from typing import Any, Final
from urllib.parse import quote

from tunnelmgr.core.cures import GONE, MARKS, PHASES, cure
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.errors import release_command

Json = dict[str, Any]

WAITING: Final = "Its evidence is being looked for."


def href(agent: str) -> str:
    """Return the address of an agent's page, relative to that of the overview."""
    return f"agents/{quote(agent, safe='')}"


def shown(agent: Json) -> Json:
    """Return an agent of the API with the texts that the page adds."""
    phase = agent["phase"] if agent["present"] else "gone"
    return {
        **agent,
        "shown_phase": phase,
        "mark": MARKS[phase],
        "href": href(agent["agent"]),
        "why": _why(agent, phase),
    }


def _why(agent: Json, phase: str) -> str:
    """Return the reason of an agent's phase, without the command to release it, which the page shows by itself."""
    if not (agent["message"] or agent["error"]):
        return WAITING if phase == Phase.AWAITING_IDENTITY else ""
    message = str(agent["message"] or agent["error"])
    return message.partition(f" Investigate, then run: {release_command(agent['agent'])}")[0]


def explained(agent: Json) -> Json:
    """Return an agent of the API with why it is in its phase, what to do, and the command to run if there is one."""
    held_back = agent["phase"] == Phase.QUARANTINED
    return {
        **shown(agent),
        "meaning": PHASES[Phase(agent["phase"])] if agent["present"] else GONE,
        "cure": cure(agent["phase"], agent["error"]) if agent["present"] else "",
        "command": release(agent["agent"]) if held_back and agent["present"] else None,
        "doctor": f"tunnelmgr doctor {shlex.quote(agent['agent'])}" if agent["present"] and agent["error"] else None,
    }


def release(agent: str) -> str:
    """Return the command that releases an agent, safe to paste into a shell."""
    return release_command(shlex.quote(agent))
