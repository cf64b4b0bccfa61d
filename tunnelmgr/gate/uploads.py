"""Which agent began which upload: a location may be used only by the agent whose POST was answered with it.

- Owned by the agent, not by its channel or tunnel: an upload that was cut off is resumed after a reconnect.
- What is not known here does not exist for the agent. After a restart of the controller that is every upload; clients
  are told BLOB_UPLOAD_UNKNOWN (OCI distribution spec, "Error Codes") and begin anew.
- Bounded: an agent's oldest uploads make room for its newest, and what was not used for a day is forgotten.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.tunnel import Endpoint

PER_AGENT: Final = 256
"""Uploads that one agent may have open; docker sends five layers at a time, and agents run a handful of pushes."""
KEPT: Final = 86400.0
"""Seconds for which an unused upload is remembered; the registry itself purges after a week."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload of a registry, by the id in its location."""

    registry: Endpoint
    repository: str
    id: str


class Uploads:
    """The open uploads of every agent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Each agent's uploads with when they were last used, the one unused for longest first.
        self._by_agent: dict[AgentId, dict[Upload, float]] = {}
        self._swept = clock()

    def keep(self, agent: AgentId, upload: Upload) -> None:
        """Remember that the agent began this upload, or went on with it."""
        now = self._clock()
        self._sweep(now)
        own = self._by_agent.setdefault(agent, {})
        own.pop(upload, None)
        own[upload] = now
        if len(own) > PER_AGENT:
            del own[next(iter(own))]

    def belongs(self, upload: Upload, agent: AgentId) -> bool:
        """Whether the agent began this upload."""
        used = self._by_agent.get(agent, {}).get(upload)
        return used is not None and self._clock() - used <= KEPT

    def forget(self, agent: AgentId, upload: Upload) -> None:
        """Drop an upload that has ended."""
        own = self._by_agent.get(agent, {})
        own.pop(upload, None)
        if not own:
            self._by_agent.pop(agent, None)

    def __len__(self) -> int:
        return sum(map(len, self._by_agent.values()))

    def _sweep(self, now: float) -> None:
        """Forget what grew old, now and then: agents that left will never ask again."""
        if now - self._swept < KEPT / 24:
            return
        self._swept = now
        for agent, own in list(self._by_agent.items()):
            for upload in [upload for upload, used in own.items() if now - used > KEPT]:
                self.forget(agent, upload)
