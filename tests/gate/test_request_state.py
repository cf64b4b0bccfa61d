"""The times in the record of a request."""

from types import SimpleNamespace

import pytest

from tests.gate.conftest import CALLER
from tunnelmgr.gate import request_state
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_state import RequestState


def record_at(state: RequestState, now: float, monkeypatch: pytest.MonkeyPatch) -> RequestRecord:
    """Return the record of a request that began at 100 s and ends now."""
    monkeypatch.setattr(request_state, "time", SimpleNamespace(monotonic=lambda: now))
    return state.to_record(CALLER, bytes_to_agent=0, bytes_from_agent=0)


def test_the_latency_ends_with_the_start_of_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose response starts after 2 s and ends after 32 s has both times in its record."""
    state = RequestState(began=100.0)
    monkeypatch.setattr(request_state, "time", SimpleNamespace(monotonic=lambda: 102.0))
    state.start_response(200)

    record = record_at(state, 132.0, monkeypatch)

    assert (record.status, record.latency, record.took) == (200, 2.0, 32.0)


def test_a_request_without_a_response_has_waited_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the agent went away before a response started, its latency is the whole time."""
    record = record_at(RequestState(began=100.0), 105.0, monkeypatch)

    assert (record.status, record.latency, record.took) == (0, 5.0, 5.0)
