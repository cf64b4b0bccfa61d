"""Which agent began which upload, and where the registry goes on with it.

A registry chooses the location of an upload, and only the registry understands it (OCI distribution spec, "Pushing
blobs"). The agent gets a location of our own instead, `/v2/<repository>/blobs/uploads/<id>`, and the registry's is kept
here. So a location may be used only by the agent whose POST was answered with it, and nothing that an agent wrote is
part of what the registry gets.

- Owned by the agent, not by its channel or tunnel: an upload that was cut off is resumed after a reconnect.
- What is not known here does not exist for the agent. After a restart of the controller that is every upload; clients
  are told BLOB_UPLOAD_UNKNOWN (OCI distribution spec, "Error Codes") and begin again.
- Bounded: an agent's oldest uploads make room for its newest, and what was not used for a day is forgotten.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import UploadLocation
from tunnelmgr.core.tunnel import Endpoint

MAX_UPLOADS: Final = 256
"""Uploads that one agent may have open; docker sends five layers at a time, and agents run a handful of pushes."""
RETENTION: Final = 86400.0
"""Seconds for which an unused upload is remembered; the registry itself purges after a week."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload to a registry, by the id that the agent knows it by."""

    registry: Endpoint
    repository: str
    id: str


@dataclass(slots=True)
class _Kept:
    place: UploadLocation
    used: float


class Uploads:
    """The open uploads of every agent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Each agent's uploads, the one unused for longest first.
        self._by_agent: dict[AgentId, dict[Upload, _Kept]] = {}
        self._swept = clock()

    def begin(self, agent: AgentId, registry: Endpoint, repository: str, place: UploadLocation) -> Upload:
        """Remember an upload that the agent began; returns it with an id that nobody can guess."""
        upload = Upload(registry, repository, secrets.token_hex(16))
        self.move(agent, upload, place)
        return upload

    def move(self, agent: AgentId, upload: Upload, place: UploadLocation) -> None:
        """Remember where the registry goes on with an upload."""
        now = self._clock()
        self._sweep(now)
        own = self._by_agent.setdefault(agent, {})
        own.pop(upload, None)
        own[upload] = _Kept(place, now)
        if len(own) > MAX_UPLOADS:
            del own[next(iter(own))]

    def find(self, agent: AgentId, upload: Upload) -> UploadLocation | None:
        """Return where the registry goes on with an upload, None if this agent did not begin it or it is forgotten."""
        kept = self._by_agent.get(agent, {}).get(upload)
        return None if kept is None or self._clock() - kept.used > RETENTION else kept.place

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
        if now - self._swept < RETENTION / 24:
            return
        self._swept = now
        for agent, own in list(self._by_agent.items()):
            for upload in [upload for upload, kept in own.items() if now - kept.used > RETENTION]:
                self.forget(agent, upload)
