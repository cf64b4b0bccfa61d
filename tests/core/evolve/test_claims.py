"""Which agent a key belongs to, if the evidence of several agents names it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import Reconfigured, TunnelDialled, TunnelEnded
from tunnelmgr.core.persistence import StoredState, restored
from tunnelmgr.core.reconcile import CloseTunnel, Manner
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import History

OWN, VICTIMS, OTHER = 1, 2, 3


# --- possession and strength ---


def test_a_claim_harms_no_agent_that_was_dialled_with_the_key(history: History) -> None:
    """Evidence that names the keys of a whole fleet quarantines only its own machine."""
    fleet = [history.agent(f"honest-{number}") for number in range(10, 13)]
    for number, agent in enumerate(fleet, start=10):
        history.up(agent, number)
    forger = history.agent("forger")

    history.claim(forger, 10, 11, 12)

    assert history.act() == ()
    assert [history.status(agent).phase for agent in fleet] == [Phase.UP] * 3
    mark = history.record(forger).quarantine
    assert mark is not None
    assert mark.code == "host-key-shared"
    assert fleet[0].id in mark.message
    assert "has shown it" in mark.message


def test_a_claim_to_a_key_that_an_agent_has_not_shown_does_not_affect_it(history: History) -> None:
    """An agent that was dialled with one of its keys is not affected by claims to its other keys."""
    honest, forger = history.agent("honest"), history.agent("forger")
    history.claim(honest, OWN, OTHER)
    history.act()
    history.dialled(honest, OWN)

    history.claim(forger, OTHER)

    assert history.quarantine_code(honest) is None
    assert history.world.key_holders[history.key(OWN)] == honest.id


def test_possession_outlives_a_restart(history: History) -> None:
    """After a restart, a claimant that appears first does not affect the agent that has shown the key."""
    honest, forger = history.agent("honest"), history.agent("forger")
    history.up(honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    history.claim(forger, OWN)

    assert (history.quarantine_code(honest), history.quarantine_code(forger)) == (None, "host-key-shared")


def test_possession_holds_while_evidence_is_sought_again(history: History) -> None:
    """Between two lives of a tunnel, no other agent can claim the key of a certificate."""
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY, Method.CONSOLE)})))
    honest, forger = history.agent("honest"), history.agent("forger")
    history.claim(honest, OWN, method=Method.AUTHORITY)
    history.act()
    history.dialled(honest, OWN)
    history.ended(honest)
    assert history.record(honest).trust is None

    history.claim(forger, OWN)

    assert (history.quarantine_code(honest), history.quarantine_code(forger)) == (None, "host-key-shared")


def test_possession_ends_when_the_agent_leaves(history: History) -> None:
    """An agent that returns with a key that another has shown in the meantime is refused."""
    first, second = history.agent("first"), history.agent("second")
    history.up(first, OWN)
    history.listed(gone=frozenset({first.id}))
    history.act()
    history.ended(first, None)
    history.up(second, OWN)

    history.listed(first, second)

    assert (history.quarantine_code(first), history.quarantine_code(second)) == ("host-key-shared", None)


def test_a_worker_of_an_earlier_incarnation_proves_nothing_about_the_present_one(history: History) -> None:
    """A handshake with the machine before a rebuild gives the rebuilt agent no possession of the key."""
    agent = history.agent()
    history.dialling(agent, OWN)
    history.listed(replace(agent, incarnation="2"))

    history.dialled(agent, OWN)

    assert history.record(agent).possessed == ()


def test_stronger_evidence_quarantines_only_the_weaker_claimant(history: History) -> None:
    """Of two claimants the one with weaker evidence is quarantined, whichever came first."""
    for number, (first, second) in enumerate([(Method.TOFU, Method.CONSOLE), (Method.CONSOLE, Method.TOFU)], start=10):
        early, late = history.agent(f"early-{number}"), history.agent(f"late-{number}")

        history.claim(early, number, method=first)
        history.claim(late, number, method=second)

        weaker, stronger = (early, late) if first is Method.TOFU else (late, early)
        assert (history.quarantine_code(weaker), history.quarantine_code(stronger)) == ("host-key-shared", None)
        assert history.world.key_holders[history.key(number)] == stronger.id
        mark = history.record(weaker).quarantine
        assert mark is not None
        assert "has stronger evidence for it" in mark.message


def test_an_agent_that_shows_a_key_that_another_has_shown_is_refused(history: History) -> None:
    """Of two machines with one private key, the one that was dialled first keeps its tunnel."""
    first, second = history.agent("first"), history.agent("second")
    history.claim(first, OWN, OTHER)
    history.claim(second, VICTIMS)
    history.act()
    history.dialled(first, OWN)
    history.dialled(second, VICTIMS)
    life = history.status(first).life
    third = history.agent("third")
    history.claim(third, OTHER)
    history.act()
    history.dialled(third, OTHER)

    history.receive(TunnelDialled(first.id, life, "10.0.0.1:22", host_key=history.key(OTHER)))

    assert (history.quarantine_code(first), history.quarantine_code(third)) == ("host-key-shared", None)
    assert history.act() == (CloseTunnel(first.id, life, Manner.REVOKE),)


# --- a forger that came first ---


def test_a_forger_that_is_up_with_its_own_key_loses_the_keys_that_it_has_not_shown(history: History) -> None:
    """An agent whose key was named by a forger that is up comes up too, and neither affects the other."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, OWN, VICTIMS)
    history.act()
    history.dialled(forger, OWN)

    history.up(honest, VICTIMS)

    assert (history.quarantine_code(forger), history.quarantine_code(honest)) == (None, None)


def test_a_forger_that_was_refused_claims_nothing_any_more(history: History) -> None:
    """A forger that showed another key than its evidence named blocks no other agent."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, VICTIMS)
    history.act()
    history.receive(TunnelEnded(forger.id, 1, replace(history.failure(), code="host-key-mismatch")))

    history.up(honest, VICTIMS)

    assert (history.quarantine_code(forger), history.quarantine_code(honest)) == ("host-key-mismatch", None)
