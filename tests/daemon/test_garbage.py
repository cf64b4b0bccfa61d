"""Full collections run when they are scheduled, and not during a pull."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from tunnelmgr.daemon.garbage import collect, disable_full_collections


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Knot:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.self = self


def test_a_full_collection_happens_only_when_it_is_asked_for() -> None:
    """Old cycles are collected by `collect`, and not before."""
    disable_full_collections()
    full = gc.get_stats()[2]["collections"]
    knot = weakref.ref(old := Knot())
    gc.collect(1)
    del old
    for _ in range(100):
        _ = [[] for _ in range(10_000)]
    assert gc.get_stats()[2]["collections"] == full
    assert knot() is not None

    collect()
    assert knot() is None


def test_young_cycles_are_collected_as_usual() -> None:
    """Young cycles do not accumulate."""
    disable_full_collections()
    knots = [weakref.ref(Knot()) for _ in range(100_000)]

    assert sum(knot() is not None for knot in knots) < 60_000


def test_what_exists_at_the_start_is_left_out_of_all_collections() -> None:
    """The objects of the start, which stay permanently, are not visited again and again."""
    gc.disable()

    disable_full_collections()

    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
