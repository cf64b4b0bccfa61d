"""The open uploads: which agent began each one, and where the registry continues it.

A registry chooses the location of an upload, and only the registry understands it (OCI distribution spec, "Pushing
blobs"). The agent gets another location, chosen by the gate, `/v2/<repository>/blobs/uploads/<id>`; the registry's is
stored here. So only the agent whose POST was answered with a location can use it, and nothing that an agent wrote
becomes part of the registry's location.

- An upload belongs to the agent, not to its channel or tunnel: after a reconnect the agent can resume it.
- An upload that is not stored here does not exist for the agent. After a restart of the controller this is true of
  every upload; clients get BLOB_UPLOAD_UNKNOWN (OCI distribution spec, "Error Codes") and start again.
- The number is bounded: an agent's newest upload replaces its least recently used one, and an upload that was not used
  for a day is dropped.
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
"""Uploads that one agent may have open; docker sends five layers at a time, and agents run a few pushes at a time."""
RETENTION: Final = 86400.0
"""Seconds for which an unused upload is stored; the registry itself drops it after a week."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload to a registry, by the id in the location that the agent has."""

    registry: Endpoint
    repository: str
    id: str


@dataclass(slots=True)
class _Stored:
    location: UploadLocation
    used: float


class Uploads:
    """The open uploads of every agent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Each agent's uploads, the least recently used first.
        self._by_agent: dict[AgentId, dict[Upload, _Stored]] = {}
        self._last_sweep = clock()

    def begin(self, agent: AgentId, registry: Endpoint, repository: str, location: UploadLocation) -> Upload:
        """Store an upload that the agent began; returns it with an id that cannot be guessed."""
        upload = Upload(registry, repository, secrets.token_hex(16))
        self.move(agent, upload, location)
        return upload

    def move(self, agent: AgentId, upload: Upload, location: UploadLocation) -> None:
        """Store where the registry continues an upload."""
        now = self._clock()
        self._sweep(now)
        uploads = self._by_agent.setdefault(agent, {})
        uploads.pop(upload, None)
        uploads[upload] = _Stored(location, now)
        if len(uploads) > MAX_UPLOADS:
            del uploads[next(iter(uploads))]

    def find(self, agent: AgentId, upload: Upload) -> UploadLocation | None:
        """Return where the registry continues an upload, None if this agent did not begin it or it was dropped."""
        stored = self._by_agent.get(agent, {}).get(upload)
        return None if stored is None or self._clock() - stored.used > RETENTION else stored.location

    def forget(self, agent: AgentId, upload: Upload) -> None:
        """Drop an upload that has ended."""
        uploads = self._by_agent.get(agent, {})
        uploads.pop(upload, None)
        if not uploads:
            self._by_agent.pop(agent, None)

    def __len__(self) -> int:
        return sum(map(len, self._by_agent.values()))

    def _sweep(self, now: float) -> None:
        """Drop expired uploads, at most once an hour: agents that have left never use theirs again."""
        if now - self._last_sweep < RETENTION / 24:
            return
        self._last_sweep = now
        for agent, uploads in list(self._by_agent.items()):
            for upload in [upload for upload, stored in uploads.items() if now - stored.used > RETENTION]:
                self.forget(agent, upload)
