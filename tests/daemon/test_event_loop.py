"""The daemon's event loop: uvloop's if it is installed, else asyncio's."""

import sys

import pytest
import uvloop

from tunnelmgr.daemon.event_loop import loop_factory


def test_uvloop_is_used_where_it_is_installed() -> None:
    """Uvloop's factory is used if uvloop is installed."""
    factory = loop_factory()
    assert factory is not None
    loop = factory()
    loop.close()
    assert isinstance(loop, uvloop.Loop)


def test_without_it_the_daemon_runs_on_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without uvloop, the daemon uses asyncio's own loop."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
