"""The token bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmgr.core.rate_limit import TokenBucket


def test_a_burst_costs_no_time() -> None:
    """A full bucket gives all its tokens at once, and the next one after the time of one token."""
    bucket = TokenBucket(rate=10, burst=5)
    for _ in range(5):
        bucket.take(100.0)
        assert bucket.wait(100.0) == 0

    bucket.take(100.0)

    assert bucket.wait(100.0) == pytest.approx(0.1)
    assert bucket.wait(100.1) == pytest.approx(0.0)


def test_an_unused_bucket_is_full_again() -> None:
    """Tokens come back with time, and never more than the burst."""
    bucket = TokenBucket(rate=10, burst=5)
    for _ in range(5):
        bucket.take(0.0)
    assert not bucket.idle(0.4)
    assert bucket.idle(0.5)

    for _ in range(6):
        bucket.take(1000.0)

    assert bucket.wait(1000.0) == pytest.approx(0.1)


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(1, 100), st.floats(1, 20))
def test_in_the_long_run_the_rate_is_never_exceeded(gaps: list[float], rate: float, burst: float) -> None:
    """A caller that waits as required takes at most `burst` tokens and `rate` per second."""
    bucket, now, taken = TokenBucket(rate, burst), 0.0, 0
    for gap in gaps:
        now += gap + bucket.wait(now + gap)
        bucket.take(now)
        taken += 1

    assert taken <= burst + rate * now + 1 + 1e-6
