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
    """A console block that lists the keys of a whole fleet quarantines its own machine only."""
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


def test_possession_protects_the_other_keys_of_the_same_evidence_by_not_needing_them(history: History) -> None:
    """An agent that was dialled with one of its keys is not touched by a claim to the others."""
    honest, forger = history.agent("honest"), history.agent("forger")
    claims(history, honest, OWN, OTHER)
    history.act()
    history.dialled(honest, OWN)

    claims(history, forger, OTHER)

    assert code(history, honest) is None
    assert history.world.key_holders[history.key(OWN)] == honest.id


def test_possession_outlives_a_restart(history: History) -> None:
    """A forger that comes first after a restart harms nobody either."""
    honest, forger = history.agent("honest"), history.agent("forger")
    history.up(honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    claims(history, forger, OWN)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")


def test_possession_holds_while_the_evidence_is_asked_for_again(history: History) -> None:
    """Between two lives of a tunnel a certificate's key is as little for others to claim."""
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
    """An agent that comes back with a key that another has shown meanwhile is the one that is refused."""
    first, second = history.agent("first"), history.agent("second")
    history.up(first, OWN)
    history.listed(gone=frozenset({first.id}))
    history.act()
    history.ended(first, None)
    history.up(second, OWN)

    history.listed(first, second)

    assert (code(history, first), code(history, second)) == ("host-key-shared", None)


def test_a_worker_of_an_earlier_incarnation_proves_nothing_of_the_machine_that_is_there_now(history: History) -> None:
    """Its report may come after the rebuild."""
    agent = history.agent()
    history.dialling(agent, OWN)
    history.listed(replace(agent, incarnation="2"))

    history.dialled(agent, OWN)

    assert history.record(agent).possessed == ()


def test_stronger_evidence_quarantines_only_the_weaker_claimant(history: History) -> None:
    """Whichever of the two came first."""
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


def test_an_agent_is_refused_that_shows_a_key_which_another_has_shown(history: History) -> None:
    """Two machines with one private key: the first that was dialled goes on."""
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


def test_a_forger_that_is_up_with_its_own_key_gives_up_what_it_has_not_shown(history: History) -> None:
    """The agent whose key it had named comes up all the same, and neither harms the other."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN, VICTIMS)
    history.act()
    history.dialled(forger, OWN)

    history.up(honest, VICTIMS)

    assert (code(history, forger), code(history, honest)) == (None, None)


def test_a_forger_that_was_refused_claims_nothing_any_more(history: History) -> None:
    """It was dialled, showed another key than it had named, and blocks nobody from then on."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, VICTIMS)
    history.act()
    history.receive(TunnelEnded(forger.id, 1, replace(history.failure(), code="host-key-mismatch")))

    history.up(honest, VICTIMS)

    assert (code(history, forger), code(history, honest)) == ("host-key-mismatch", None)


# --- disputes ---


def test_equal_claims_without_possession_quarantine_both_and_have_both_examined(history: History) -> None:
    """The tunnel that is being dialled is closed first; each agent is asked for the disputed key alone."""
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


def test_the_one_that_alone_shows_the_key_goes_on(history: History) -> None:
    """The other showed another key, or could not be reached; it stays in quarantine, for a person to look at."""
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
    """They cannot be told apart; an image with host keys in it does this. A third that only claims the key too goes."""
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


def test_where_nobody_shows_the_key_all_are_asked_again_later(history: History) -> None:
    """The honest one may be booting still; what it said is told once."""
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
    """Its handshake shows as much as an examination."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, honest, OWN)
    history.act()
    claims(history, forger, OWN)
    history.act()

    history.dialled(honest, OWN)
    shows(history, forger, None)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")


def test_a_dispute_ends_when_an_agent_with_stronger_evidence_comes(history: History) -> None:
    """Those in dispute are refused, and asked for nothing more."""
    one, other, stronger = history.agent("one"), history.agent("other"), history.agent("stronger")
    claims(history, one, OWN, method=Method.TOFU)
    claims(history, other, OWN, method=Method.TOFU)

    claims(history, stronger, OWN)

    assert [code(history, agent) for agent in (one, other, stronger)] == ["host-key-shared", "host-key-shared", None]
    assert not any(isinstance(action, ExamineKey) for action in history.act())


def test_a_forger_in_dispute_over_two_keys_loses_both_at_the_first(history: History) -> None:
    """The second of its victims goes on when it has shown its own key."""
    forger, first, second = history.agent("forger"), history.agent("first"), history.agent("second")
    claims(history, forger, 11, 12)
    claims(history, first, 11)
    claims(history, second, 12)
    history.act()

    shows(history, forger, None)
    shows(history, first, 11)
    shows(history, second, 12)

    assert [code(history, agent) for agent in (forger, first, second)] == ["host-key-shared", None, None]


def test_a_forger_that_is_refused_for_one_key_blocks_nobody_over_another(history: History) -> None:
    """What it named besides is free at once, and no dispute begins over it."""
    strong, forger, honest = history.agent("strong"), history.agent("forger"), history.agent("honest")
    claims(history, honest, 12, method=Method.TOFU)
    claims(history, strong, 11)
    claims(history, forger, 12, 11, method=Method.TOFU)

    assert [code(history, agent) for agent in (strong, forger)] == [None, "host-key-shared"]
    assert code(history, honest) is None


def test_a_dispute_ends_when_the_others_leave(history: History) -> None:
    """The one that is left goes on as soon as it shows the key."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)
    history.act()
    shows(history, honest, OWN)
    assert code(history, honest) == "host-key-shared"

    history.listed(honest, gone=frozenset({forger.id}))

    assert code(history, honest) is None


def test_a_rebuilt_machine_disputes_nothing(history: History) -> None:
    """What its quarantine was about is gone with the machine; the quarantine stays."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)

    history.listed(honest, replace(forger, incarnation="2"))

    mark = history.record(forger).quarantine
    assert mark is not None
    assert mark.disputed == ()


def test_the_answer_of_an_examination_that_nobody_waits_for_changes_no_claim(history: History) -> None:
    """The agent was released, rebuilt or forgotten meanwhile, or was never asked."""
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
    """What led into the quarantine is forgotten with it."""
    agent = history.agent()
    history.up(agent, OWN)
    history.receive(TunnelEnded(agent.id, 1, history.failure()))

    history.receive(ReleaseRequested(agent.id, "looked at"))

    assert history.record(agent).possessed == ()


def test_a_dispute_goes_on_after_a_restart(history: History) -> None:
    """Who has to be asked is written down with the quarantine."""
    forger, honest = history.agent("forger"), history.agent("honest")
    claims(history, forger, OWN)
    claims(history, honest, OWN)
    history.world = restored(StoredState(history.world.records), history.now)
    history.receive(Reconfigured(history.rules))

    assert {action.agent for action in history.act() if isinstance(action, ExamineKey)} == {forger, honest}
    shows(history, honest, OWN)
    shows(history, forger, None)

    assert (code(history, honest), code(history, forger)) == (None, "host-key-shared")
