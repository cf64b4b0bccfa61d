"""Which agent a key belongs to, where the evidence of several names it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import EvidenceFound, KeyExamined, Reconfigured, ReleaseRequested, TunnelDialled, TunnelEnded
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.persistence import StoredState, restored
from tunnelmgr.core.reconcile import CloseTunnel, ExamineKey, Manner, OpenTunnel, next_due
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, Seeking

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent

OWN, VICTIMS, OTHER = 1, 2, 3


def claims(history: History, agent: Agent, *numbers: int, method: Method = Method.CONSOLE) -> None:
    """List an agent, and let its evidence name these keys."""
    others = {record.agent for record in history.world.records.values() if record.present}
    history.listed(*(other for other in others if other.id != agent.id), agent)
    keys = tuple(history.key(number) for number in numbers)
    history.receive(EvidenceFound(agent.id, agent.incarnation, HostTrust(method, keys)))


def shows(history: History, agent: Agent, number: int | None) -> None:
    """Answer an agent's examination: with this key, or not at all."""
    key, message = ("", "no answer in time") if number is None else (history.key(number), "")
    history.receive(KeyExamined(agent.id, agent.incarnation, key, message))


def code(history: History, agent: Agent) -> str | None:
    """Return why an agent is in quarantine, None where it is not."""
    mark = history.record(agent).quarantine
    return mark.code if mark else None


# --- possession and strength ---


def test_a_claim_harms_no_agent_that_was_dialled_with_the_key(history: History) -> None:
    """Evidence that names the keys of a whole fleet quarantines only its own machine."""
    fleet = [history.agent(f"honest-{number}") for number in range(10, 13)]
    for number, agent in enumerate(fleet, start=10):
        history.up(agent, number)
    forger = history.agent("forger")

    claims(history, forger, 10, 11, 12)

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
    claims(history, honest, OWN, OTHER)
    history.act()
    history.dialled(honest, OWN)

    claims(history, forger, OTHER)

    assert code(history, honest) is None
    assert history.world.key_holders[history.key(OWN)] == honest.id


def test_possession_outlives_a_restart(history: History) -> None:
    """After a restart, a claimant that appears first does not affect the agent that has shown the key."""
    honest, forger = history.agent("honest"), history.agent("forger")
    history.up(honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    claims(history, forger, OWN)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")


def test_possession_holds_while_evidence_is_sought_again(history: History) -> None:
    """Between two lives of a tunnel, no other agent can claim the key of a certificate."""
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY, Method.CONSOLE)})))
    honest, forger = history.agent("honest"), history.agent("forger")
    claims(history, honest, OWN, method=Method.AUTHORITY)
    history.act()
    history.dialled(honest, OWN)
    history.ended(honest)
    assert history.record(honest).trust is None

    claims(history, forger, OWN)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")


def test_possession_ends_when_the_agent_leaves(history: History) -> None:
    """An agent that returns with a key that another has shown in the meantime is refused."""
    first, second = history.agent("first"), history.agent("second")
    history.up(first, OWN)
    history.listed(gone=frozenset({first.id}))
    history.act()
    history.ended(first, None)
    history.up(second, OWN)

    history.listed(first, second)

    assert (code(history, first), code(history, second)) == ("host-key-shared", None)


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

        claims(history, early, number, method=first)
        claims(history, late, number, method=second)

        weaker, stronger = (early, late) if first is Method.TOFU else (late, early)
        assert (code(history, weaker), code(history, stronger)) == ("host-key-shared", None)
        assert history.world.key_holders[history.key(number)] == stronger.id
        mark = history.record(weaker).quarantine
        assert mark is not None
        assert "has stronger evidence for it" in mark.message


def test_an_agent_that_shows_a_key_that_another_has_shown_is_refused(history: History) -> None:
    """Of two machines with one private key, the one that was dialled first keeps its tunnel."""
    first, second = history.agent("first"), history.agent("second")
    claims(history, first, OWN, OTHER)
    claims(history, second, VICTIMS)
    history.act()
    history.dialled(first, OWN)
    history.dialled(second, VICTIMS)
    life = history.status(first).life
    third = history.agent("third")
    claims(history, third, OTHER)
    history.act()
    history.dialled(third, OTHER)

    history.receive(TunnelDialled(first.id, life, "10.0.0.1:22", host_key=history.key(OTHER)))

    assert (code(history, first), code(history, third)) == ("host-key-shared", None)
    assert history.act() == (CloseTunnel(first.id, life, Manner.REVOKE),)


# --- a forger that came first ---


def test_a_forger_that_is_up_with_its_own_key_loses_the_keys_that_it_has_not_shown(history: History) -> None:
    """An agent whose key was named by a forger that is up comes up too, and neither affects the other."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN, VICTIMS)
    history.act()
    history.dialled(forger, OWN)

    history.up(honest, VICTIMS)

    assert (code(history, forger), code(history, honest)) == (None, None)


def test_a_forger_that_was_refused_claims_nothing_any_more(history: History) -> None:
    """A forger that showed another key than its evidence named blocks no other agent."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, VICTIMS)
    history.act()
    history.receive(TunnelEnded(forger.id, 1, replace(history.failure(), code="host-key-mismatch")))

    history.up(honest, VICTIMS)

    assert (code(history, forger), code(history, honest)) == ("host-key-mismatch", None)


# --- disputes ---


def test_equal_claims_without_possession_quarantine_both_and_cause_examinations(history: History) -> None:
    """Equal claims close a tunnel that is being dialled, and each agent is asked to show the disputed key."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, VICTIMS, OWN)
    history.act()

    claims(history, honest, VICTIMS)

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
        claims(history, forger, number)
        claims(history, honest, number)
        history.act()

        shows(history, honest, number)
        assert code(history, honest) == "host-key-shared"
        shows(history, forger, answer)

        assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")
        assert history.record(honest).history[-1].step == "released"
        assert [step for step in history.steps(forger) if step in {"examined", "refused"}] == ["examined", "refused"]
        opened = [action.agent for action in history.act() if isinstance(action, OpenTunnel)]
        assert opened == [honest.id]


def test_twins_that_both_show_the_key_stay_in_quarantine(history: History) -> None:
    """Agents that both show the disputed key stay in quarantine, as does a third that only claims it."""
    one, other, third = history.agent("one"), history.agent("other"), history.agent("third")
    for agent in (one, other, third):
        claims(history, agent, OWN)
    history.act()

    shows(history, one, OWN)
    shows(history, third, OTHER)
    shows(history, other, OWN)

    marks = [history.record(agent).quarantine for agent in (one, other, third)]
    assert [mark.disputed for mark in marks if mark] == [(), (), ()]
    assert marks[0] is not None
    assert marks[0].message.startswith("cloud:one, cloud:other have shown the same host key (SHA256:")
    assert history.act() == ()
    assert next_due(history.world) is None


def test_if_no_agent_shows_the_key_all_are_asked_again_later(history: History) -> None:
    """If no agent shows the disputed key, all are asked again later, and a repeated answer is in the history once."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)
    history.act()

    for _ in range(2):
        shows(history, forger, None)
        shows(history, honest, None)
        assert history.act() == ()
        assert next_due(history.world) is not None
        history.now += 60
        assert len(history.act()) == 2
    shows(history, honest, OWN)

    assert code(history, honest) is None
    assert history.steps(forger).count("examined") == 1


def test_a_dial_that_was_under_way_when_the_dispute_began_counts_as_an_answer(history: History) -> None:
    """A handshake of a dial that was under way when the dispute began counts as an answer."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, honest, OWN)
    history.act()
    claims(history, forger, OWN)
    history.act()

    history.dialled(honest, OWN)
    shows(history, forger, None)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")


def test_agents_that_return_together_with_equal_claims_are_in_dispute(history: History) -> None:
    """Two agents that return in one snapshot with evidence of one key are both quarantined."""
    one, other = history.agent("one"), history.agent("other")
    claims(history, one, OWN)
    history.listed(gone=frozenset({one.id}))
    claims(history, other, OWN)
    history.listed(gone=frozenset({other.id}))

    history.listed(one, other)

    assert [code(history, agent) for agent in (one, other)] == ["host-key-shared", "host-key-shared"]


def test_a_dispute_ends_when_an_agent_with_stronger_evidence_comes(history: History) -> None:
    """Agents in dispute are refused, and asked nothing more, when an agent with stronger evidence appears."""
    one, other, stronger = history.agent("one"), history.agent("other"), history.agent("stronger")
    claims(history, one, OWN, method=Method.TOFU)
    claims(history, other, OWN, method=Method.TOFU)

    claims(history, stronger, OWN)

    assert [code(history, agent) for agent in (one, other, stronger)] == ["host-key-shared", "host-key-shared", None]
    assert not any(isinstance(action, ExamineKey) for action in history.act())


def test_a_forger_in_dispute_over_two_keys_loses_both_at_the_first(history: History) -> None:
    """A forger that loses one dispute loses its other disputes too, so that both of its victims come up."""
    forger, first, second = history.agent("forger"), history.agent("first"), history.agent("second")
    claims(history, forger, 11, 12)
    claims(history, first, 11)
    claims(history, second, 12)
    history.act()

    shows(history, forger, None)
    shows(history, first, 11)
    shows(history, second, 12)

    assert [code(history, agent) for agent in (forger, first, second)] == ["host-key-shared", None, None]


def test_a_forger_that_is_refused_for_one_key_blocks_no_agent_by_another(history: History) -> None:
    """The other keys of a refused agent are free at once, and cause no dispute."""
    strong, forger, honest = history.agent("strong"), history.agent("forger"), history.agent("honest")
    claims(history, honest, 12, method=Method.TOFU)
    claims(history, strong, 11)
    claims(history, forger, 12, 11, method=Method.TOFU)

    assert [code(history, agent) for agent in (strong, forger)] == [None, "host-key-shared"]
    assert code(history, honest) is None


def test_a_dispute_ends_when_the_others_leave(history: History) -> None:
    """The last agent of a dispute is released as soon as it has shown the key."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)
    history.act()
    shows(history, honest, OWN)
    assert code(history, honest) == "host-key-shared"

    history.listed(honest, gone=frozenset({forger.id}))

    assert code(history, honest) is None


def test_a_rebuilt_machine_disputes_nothing(history: History) -> None:
    """A rebuild ends an agent's part in a dispute but not its quarantine."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)

    history.listed(honest, replace(forger, incarnation="2"))

    mark = history.record(forger).quarantine
    assert mark is not None
    assert mark.disputed == ()


def test_an_answer_that_no_examination_expects_changes_no_claim(history: History) -> None:
    """A key shown by an agent that was released, rebuilt or never asked changes no claim."""
    forger, honest = history.agent("forger"), history.agent("honest")
    shows(history, forger, OWN)
    claims(history, forger, OWN)
    shows(history, forger, OWN)
    claims(history, honest, OWN)
    history.act()
    history.receive(ReleaseRequested(honest.id, "looked at"))

    shows(history, honest, OWN)

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
    claims(history, forger, OWN)
    claims(history, honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    assert {action.agent for action in history.act() if isinstance(action, ExamineKey)} == {forger, honest}
    shows(history, honest, OWN)
    shows(history, forger, None)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")
