"""Disputes: what decides between agents with equal claims to one key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import Reconfigured, ReleaseRequested, TunnelEnded
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.persistence import StoredState, restored
from tunnelmgr.core.reconcile import CloseTunnel, ExamineKey, Manner, OpenTunnel, next_due
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase, Seeking

if TYPE_CHECKING:
    from tests.core.conftest import History

OWN, VICTIMS, OTHER = 1, 2, 3


def test_equal_claims_without_possession_quarantine_both_and_cause_examinations(history: History) -> None:
    """Equal claims close a tunnel that is being dialled, and each agent is asked to show the disputed key."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, VICTIMS, OWN)
    history.act()

    history.claim(honest, VICTIMS)

    assert [history.status(agent).phase for agent in (forger, honest)] == [Phase.CONNECTING, Phase.QUARANTINED]
    assert history.act() == (
        CloseTunnel(forger.id, 1, Manner.REVOKE),
        ExamineKey(honest, (history.key(VICTIMS),)),
    )
    history.ended(forger, None)
    assert history.act() == (ExamineKey(forger, (history.key(VICTIMS),)),)
    for one, other in ((forger, honest), (honest, forger)):
        mark = history.record(one).quarantine
        assert mark is not None
        assert other.id in mark.message
        assert f'tunnelmgr release {one.id} --reason "…"' in mark.message
        assert fingerprint(history.key(VICTIMS)) in mark.message


def test_the_only_agent_that_shows_the_key_is_released(history: History) -> None:
    """An agent that alone shows the disputed key is released and dialled; the other stays in quarantine."""
    for number, answer in enumerate((OWN, None), start=20):
        forger, honest = history.agent(f"forger-{number}"), history.agent(f"honest-{number}")
        history.claim(forger, number)
        history.claim(honest, number)
        history.act()

        history.show(honest, number)
        assert history.quarantine_code(honest) == "host-key-shared"
        history.show(forger, answer)

        assert (history.quarantine_code(honest), history.quarantine_code(forger)) == (None, "host-key-shared")
        assert history.record(honest).history[-1].step == "released"
        assert [step for step in history.steps(forger) if step in {"examined", "refused"}] == ["examined", "refused"]
        opened = [action.agent for action in history.act() if isinstance(action, OpenTunnel)]
        assert opened == [honest.id]


def test_twins_that_both_show_the_key_stay_in_quarantine(history: History) -> None:
    """Agents that both show the disputed key stay in quarantine, as does a third that only claims it."""
    one, other, third = history.agent("one"), history.agent("other"), history.agent("third")
    for agent in (one, other, third):
        history.claim(agent, OWN)
    history.act()

    history.show(one, OWN)
    history.show(third, OTHER)
    history.show(other, OWN)

    marks = [history.record(agent).quarantine for agent in (one, other, third)]
    assert [mark.disputed for mark in marks if mark] == [(), (), ()]
    assert marks[0] is not None
    assert marks[0].message.startswith("cloud:one, cloud:other have shown the same host key (SHA256:")
    assert history.act() == ()
    assert next_due(history.world) is None


def test_if_no_agent_shows_the_key_all_are_asked_again_later(history: History) -> None:
    """If no agent shows the disputed key, all are asked again later, and a repeated answer is in the history once."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, OWN)
    history.claim(honest, OWN)
    history.act()

    for _ in range(2):
        history.show(forger, None)
        history.show(honest, None)
        assert history.act() == ()
        assert next_due(history.world) is not None
        history.now += 60
        assert len(history.act()) == 2
    history.show(honest, OWN)

    assert history.quarantine_code(honest) is None
    assert history.steps(forger).count("examined") == 1


def test_a_dial_that_was_under_way_when_the_dispute_began_counts_as_an_answer(history: History) -> None:
    """A handshake of a dial that was under way when the dispute began counts as an answer."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(honest, OWN)
    history.act()
    history.claim(forger, OWN)
    history.act()

    history.dialled(honest, OWN)
    history.show(forger, None)

    assert (history.quarantine_code(honest), history.quarantine_code(forger)) == (None, "host-key-shared")


def test_agents_that_return_together_with_equal_claims_are_in_dispute(history: History) -> None:
    """Two agents that return in one snapshot with evidence of one key are both quarantined."""
    one, other = history.agent("one"), history.agent("other")
    history.claim(one, OWN)
    history.listed(gone=frozenset({one.id}))
    history.claim(other, OWN)
    history.listed(gone=frozenset({other.id}))

    history.listed(one, other)

    assert [history.quarantine_code(agent) for agent in (one, other)] == ["host-key-shared", "host-key-shared"]


def test_a_dispute_ends_when_an_agent_with_stronger_evidence_comes(history: History) -> None:
    """Agents in dispute are refused, and asked nothing more, when an agent with stronger evidence appears."""
    one, other, stronger = history.agent("one"), history.agent("other"), history.agent("stronger")
    history.claim(one, OWN, method=Method.TOFU)
    history.claim(other, OWN, method=Method.TOFU)

    history.claim(stronger, OWN)

    assert [history.quarantine_code(agent) for agent in (one, other, stronger)] == [
        "host-key-shared",
        "host-key-shared",
        None,
    ]
    assert not any(isinstance(action, ExamineKey) for action in history.act())


def test_a_forger_in_dispute_over_two_keys_loses_both_at_the_first(history: History) -> None:
    """A forger that loses one dispute loses its other disputes too, so that both of its victims come up."""
    forger, first, second = history.agent("forger"), history.agent("first"), history.agent("second")
    history.claim(forger, 11, 12)
    history.claim(first, 11)
    history.claim(second, 12)
    history.act()

    history.show(forger, None)
    history.show(first, 11)
    history.show(second, 12)

    assert [history.quarantine_code(agent) for agent in (forger, first, second)] == ["host-key-shared", None, None]


def test_a_forger_that_is_refused_for_one_key_blocks_no_agent_by_another(history: History) -> None:
    """The other keys of a refused agent are free at once, and cause no dispute."""
    strong, forger, honest = history.agent("strong"), history.agent("forger"), history.agent("honest")
    history.claim(honest, 12, method=Method.TOFU)
    history.claim(strong, 11)
    history.claim(forger, 12, 11, method=Method.TOFU)

    assert [history.quarantine_code(agent) for agent in (strong, forger)] == [None, "host-key-shared"]
    assert history.quarantine_code(honest) is None


def test_a_dispute_ends_when_the_others_leave(history: History) -> None:
    """The last agent of a dispute is released as soon as it has shown the key."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, OWN)
    history.claim(honest, OWN)
    history.act()
    history.show(honest, OWN)
    assert history.quarantine_code(honest) == "host-key-shared"

    history.listed(honest, gone=frozenset({forger.id}))

    assert history.quarantine_code(honest) is None


def test_a_rebuilt_machine_disputes_nothing(history: History) -> None:
    """A rebuild ends an agent's part in a dispute but not its quarantine."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, OWN)
    history.claim(honest, OWN)

    history.listed(honest, replace(forger, incarnation="2"))

    mark = history.record(forger).quarantine
    assert mark is not None
    assert mark.disputed == ()


def test_an_answer_that_no_examination_expects_changes_no_claim(history: History) -> None:
    """A key shown by an agent that was released, rebuilt or never asked changes no claim."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.show(forger, OWN)
    history.claim(forger, OWN)
    history.show(forger, OWN)
    history.claim(honest, OWN)
    history.act()
    history.receive(ReleaseRequested(honest.id, "looked at"))

    history.show(honest, OWN)

    assert history.status(honest).phase is Phase.AWAITING_IDENTITY
    assert history.record(forger).possessed == ()
    assert not isinstance(history.status(honest), Seeking)


def test_a_released_agent_has_to_show_its_key_again(history: History) -> None:
    """A release ends the possession of a key."""
    agent = history.agent()
    history.up(agent, OWN)
    history.receive(TunnelEnded(agent.id, 1, history.failure()))

    history.receive(ReleaseRequested(agent.id, "looked at"))

    assert history.record(agent).possessed == ()


def test_a_dispute_goes_on_after_a_restart(history: History) -> None:
    """After a restart, the agents of a dispute are examined again, and the one that shows the key is released."""
    forger, honest = history.agent("forger"), history.agent("honest")
    history.claim(forger, OWN)
    history.claim(honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    assert {action.agent for action in history.act() if isinstance(action, ExamineKey)} == {forger, honest}
    history.show(honest, OWN)
    history.show(forger, None)

    assert (history.quarantine_code(honest), history.quarantine_code(forger)) == (None, "host-key-shared")
