"""A gate with a cache in a folder, for the tests of cached pulls."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lab.gate_stand_ins import SECRET, ListenerProofs
from tests.until import until
from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.cached_pulls import CachedPulls
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.holdings import Holdings
from tunnelmgr.gate.request_record import NoRequestLog, RequestLog
from tunnelmgr.gate.shared_requests import SharedRequests
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.uploads import UploadProofs

if TYPE_CHECKING:
    from tests.gate.conftest import Reply
    from tests.gate.docker_registry import Registry

MIB = 1024 * 1024
LARGE = os.urandom(3 * MIB + 17)
RESTRICTED = AgentId("static:restricted")


@dataclass
class Policies:
    """Every agent may pull and delete everything; `RESTRICTED` may only pull team/**."""

    def policy_of(self, agent: AgentId, _: str) -> GroupPolicy:
        """Return the agent's policy."""
        if agent == RESTRICTED:
            return GroupPolicy.build("restricted", pull=("team/**",))
        return GroupPolicy.build("ci", delete=("**",))


@dataclass
class CachedGate:
    """A gate with a cache in a folder, whose confirmations expire by the clock `now`."""

    folder: Path
    min_free: int = 0
    now: float = 0.0
    size: int = 64 * MIB
    timeout: float = 10.0
    requests: RequestLog = field(default_factory=NoRequestLog)
    gate: Gate = field(init=False)
    pulls: CachedPulls = field(init=False)

    def __post_init__(self) -> None:
        files = BlobFiles(self.folder, self.size, self.min_free)
        files.scan()
        shared, holdings = SharedRequests(self.timeout), Holdings(lambda: self.now)
        self.pulls = CachedPulls(shared, holdings, BlobCache(files))
        self.gate = Gate(
            GateContext(
                policies=Policies(),
                proofs=ListenerProofs(),
                requests=self.requests,
                uploads=UploadProofs(SECRET),
                timeouts=Timeouts(response=self.timeout),
                shared=shared,
                holdings=holdings,
                cached_pulls=self.pulls,
            )
        )

    def files(self) -> list[str]:
        """Return the names of all files in the folder."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())

    async def stored(self, digest: str) -> None:
        """Wait until a blob is in its place."""
        await until(lambda: self.files() == [digest.partition(":")[2]])


def same(one: "Reply", other: "Reply") -> bool:
    """Whether two replies are equal, but for the time."""
    return (one.status, one.body, {**one.headers, "date": ""}) == (
        other.status,
        other.body,
        {**other.headers, "date": ""},
    )


def gets(registry: "Registry", path: str) -> int:
    """Return how many GETs of a path the registry has logged."""
    return registry.access_log().count(f'"GET {path} ')
