"""What the page advises about each error."""

import pytest

from tunnelmgr import errors
from tunnelmgr.core.cures import CURES, PHASES, cure
from tunnelmgr.core.tunnel import Phase

TUNNEL_ERRORS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TunnelError)
]


@pytest.mark.parametrize("kind", TUNNEL_ERRORS, ids=lambda kind: kind.code)
def test_every_error_of_a_tunnel_has_a_cure(kind: type[errors.TunnelError]) -> None:
    """Every code that an agent can show has advice, except that of the base class."""
    assert kind is errors.TunnelError or CURES[kind.code].endswith(".")


def test_every_cure_is_of_an_error_that_exists() -> None:
    """No advice is left behind when an error is removed; `internal` is the supervisor's."""
    assert set(CURES) - {kind.code for kind in TUNNEL_ERRORS} == {"internal"}


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_a_meaning(phase: Phase) -> None:
    """Each phase is explained in a sentence."""
    assert PHASES[phase].endswith(".")


def test_an_agent_that_waits_for_its_first_evidence_is_told_to_wait() -> None:
    """Without an error there is nothing to do, except to wait for the evidence of a machine that boots."""
    assert "minutes" in cure(Phase.AWAITING_IDENTITY, None)
    assert cure(Phase.UP, None) == ""


def test_an_unknown_code_points_to_its_message() -> None:
    """A code of a newer member of the cluster has no advice here, so its message has to do."""
    assert "message" in cure(Phase.DOWN, "of-the-future")
