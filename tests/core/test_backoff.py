"""When to try again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.backoff import MANY, SCHEDULES, retry_at
from tunnelmgr.errors import Pace


@settings(derandomize=True, database=None)
@given(pace=st.sampled_from([Pace.SOON, Pace.SLOW]), failures=st.integers(0, 10_000), seed=st.text(max_size=20))
def test_a_wait_is_between_zero_and_the_cap(pace: Pace, failures: int, seed: str) -> None:
    """For any number of failures, the next try is neither in the past nor later than the cap."""
    at = retry_at(pace, failures, 100.0, seed)

    assert at is not None
    assert 100.0 <= at <= 100.0 + SCHEDULES[pace].longest


def test_pace_never_gives_no_next_try() -> None:
    """A failure with pace NEVER has no time for the next try."""
    assert retry_at(Pace.NEVER, 1, 100.0, "cloud:a/1") is None


@pytest.mark.parametrize("pace", [Pace.SOON, Pace.SLOW])
def test_waits_grow_up_to_the_cap(pace: Pace) -> None:
    """The longest possible wait grows with each failure until it reaches the cap."""
    ceilings = [SCHEDULES[pace].ceiling(failures) for failures in range(1, MANY + 1)]

    assert ceilings == sorted(ceilings)
    assert ceilings[0] == SCHEDULES[pace].base
    assert ceilings[-1] == SCHEDULES[pace].cap


def test_an_agent_that_has_failed_many_times_is_tried_less_often() -> None:
    """After many failures the cap itself grows, up to the longest wait."""
    schedule = SCHEDULES[Pace.SOON]
    ceilings = [schedule.ceiling(failures) for failures in range(MANY, 3 * MANY)]

    assert ceilings == sorted(ceilings)
    assert ceilings[0] == schedule.cap == 5.0
    assert ceilings[-1] == schedule.longest == 30.0


def test_a_draw_can_be_repeated() -> None:
    """The same seed and number of failures give the same time."""
    assert retry_at(Pace.SOON, 3, 100.0, "cloud:a/1") == retry_at(Pace.SOON, 3, 100.0, "cloud:a/1")


def test_agents_lost_together_return_apart() -> None:
    """The next tries of a hundred agents lost together are spread over the whole range."""
    waits = sorted(retry_at(Pace.SLOW, 6, 0.0, f"cloud:{number}/1") or 0 for number in range(100))

    ceiling = SCHEDULES[Pace.SLOW].ceiling(6)
    assert waits[10] < ceiling / 4
    assert waits[-10] > ceiling * 3 / 4
