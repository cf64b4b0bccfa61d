"""The budget for messages that carry no data: a burst, and then a share of the time."""

import pytest

from tunnelmgr.dataplane.fair_queue import NO_OP_BURST, NO_OP_SHARE, NoOpBudget


def test_the_saved_budget_can_be_spent_at_once() -> None:
    """A connection that was quiet may use the whole burst without a rest."""
    budget = NoOpBudget(now=100.0)

    budget.spend(NO_OP_BURST * 0.99)

    assert budget.rest(now=100.0) == 0


def test_beyond_the_burst_a_connection_rests() -> None:
    """A connection that always has messages rests nine tenths of the time."""
    budget, now, worked = NoOpBudget(now=0.0), 0.0, 0.0
    for _ in range(10_000):
        budget.spend(0.001)
        worked += 0.001
        now += 0.001
        now += budget.rest(now)

    assert worked == pytest.approx(NO_OP_BURST + NO_OP_SHARE * now, rel=0.01)


def test_bytes_in_channels_earn_more_than_they_cost() -> None:
    """A pull or push never rests: 32 KiB earn more than the 0.3 ms that they cost."""
    budget = NoOpBudget(now=0.0)
    for _ in range(10_000):
        budget.spend(0.0003)
        budget.earn(32 * 1024)
        assert budget.rest(now=0.0) == 0


def test_bytes_cannot_be_saved_up_for_a_flood() -> None:
    """A gigabyte of data earns no more than the burst."""
    budget = NoOpBudget(now=0.0)
    budget.earn(1 << 30)
    budget.rest(now=86400.0)

    budget.spend(NO_OP_BURST + 1.0)

    assert budget.rest(now=86400.0) == pytest.approx(1.0 / NO_OP_SHARE)
