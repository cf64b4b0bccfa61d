"""The cache of pulls: made from the configuration, and its health."""

from dataclasses import dataclass, field, replace
from typing import Self

from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.config import CacheConfig
from tunnelmgr.core.health import CacheHealth
from tunnelmgr.gate.cached_pulls import CachedPulls
from tunnelmgr.gate.holdings import Holdings
from tunnelmgr.gate.shared_requests import SharedRequests
from tunnelmgr.gate.timeouts import Timeouts


@dataclass(frozen=True, slots=True)
class PullCache:
    """What pulls share: requests that many agents send, what registries have confirmed, and the cache if there is one.

    `config` is that of the start.
    """

    config: CacheConfig | None = None
    shared: SharedRequests = field(default_factory=lambda: SharedRequests(Timeouts().response))
    holdings: Holdings = field(default_factory=Holdings)
    pulls: CachedPulls | None = None

    @classmethod
    def make(cls, config: CacheConfig | None) -> Self:
        """Return the cache with what earlier runs left in its folder; raises CacheError."""
        alone = cls()
        if config is None:
            return alone
        files = BlobFiles(config.path, config.size, config.min_free)
        files.claim()
        files.scan()
        pulls = CachedPulls(alone.shared, alone.holdings, BlobCache(files))
        return replace(alone, config=config, pulls=pulls)

    def health(self) -> CacheHealth | None:
        """Return what status and metrics show, None without a cache."""
        if self.config is None or self.pulls is None:
            return None
        files, counts = self.pulls.blobs.files, self.pulls.counts
        return CacheHealth(
            path=str(self.config.path),
            size=self.config.size,
            used=files.used,
            blobs=files.count,
            hits=counts.hits,
            misses=counts.misses,
            bypassed=counts.bypassed,
            octets=counts.octets,
        )
