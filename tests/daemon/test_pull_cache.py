"""The cache that the daemon makes from its configuration."""

import os
from pathlib import Path

import pytest

from tunnelmgr.config import CacheConfig
from tunnelmgr.daemon.pull_cache import PullCache
from tunnelmgr.errors import CacheError


def test_two_controllers_do_not_share_a_folder(tmp_path: Path) -> None:
    """A second controller with the same folder does not start, and leaves the first one's downloads alone."""
    config = CacheConfig(path=tmp_path)
    first = PullCache.make(config)
    assert first.pulls is not None
    fd, download = first.pulls.blobs.files.create()

    with pytest.raises(CacheError, match=f"another controller uses {tmp_path}"):
        PullCache.make(config)

    assert download.exists()
    os.close(fd)


def test_without_a_table_there_is_no_cache() -> None:
    """Without `[cache]`, nothing is kept, and nothing is shown."""
    cache = PullCache.make(None)

    assert cache.pulls is None
    assert cache.health() is None
