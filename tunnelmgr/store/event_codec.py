"""Events that members of a cluster send each other through the database, as JSON."""

import json
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError

from tunnelmgr.core.events import (
    AgentEnded,
    AgentQuarantined,
    AgentsDiscovered,
    DiscoveryFailed,
    Event,
    FeedClosed,
    FeedReported,
    ReleaseRequested,
    RetryRequested,
)

SHARED: Final = (
    AgentEnded,
    AgentQuarantined,
    AgentsDiscovered,
    DiscoveryFailed,
    FeedClosed,
    FeedReported,
    ReleaseRequested,
    RetryRequested,
)
_ADAPTERS: Final[dict[str, TypeAdapter[Any]]] = {kind.__name__: TypeAdapter(kind) for kind in SHARED}


def encode(event: Event) -> str:
    """Return an event as JSON; raises KeyError for one that is not shared."""
    name = type(event).__name__
    return json.dumps({"kind": name, "event": _ADAPTERS[name].dump_python(event, mode="json")}, sort_keys=True)


def decode(text: str) -> Event | None:
    """Return the event; None if this version does not know it, as while a cluster is being upgraded."""
    try:
        found = json.loads(text)
        return cast("Event", _ADAPTERS[found["kind"]].validate_python(found["event"], strict=False))
    except (KeyError, TypeError, ValueError, ValidationError):
        return None
