"""The daemon's loop: uvloop's where it is installed, asyncio's own elsewhere."""

import sys

import pytest
import uvloop

from tunnelmgr.daemon.event_loop import loop_factory


def test_uvloop_is_used_where_it_is_installed() -> None:
    """As it is here."""
    factory = loop_factory()
    assert factory is not None
    loop = factory()
    loop.close()
    assert isinstance(loop, uvloop.Loop)


def test_without_it_the_daemon_runs_on_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not built everywhere, and nothing else depends on it."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
