"""Which agent a key belongs to, where the evidence of several names it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import EvidenceFound, KeyExamined, Reconfigured, ReleaseRequested, TunnelDialled, TunnelEnded
from tunnelmgr.core.persistence import Memory, restored
from tunnelmgr.core.reconcile import CloseTunnel, ExamineKey, Manner, OpenTunnel, next_due
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import Story
    from tunnelmgr.core.agent import Agent

OWN, VICTIMS, OTHER = 1, 2, 3


def claims(story: Story, agent: Agent, *numbers: int, method: Method = Method.CONSOLE) -> None:
    """List an agent, and let its evidence name these keys."""
    others = {record.agent for record in story.world.records.values() if record.present}
    story.listed(*(other for other in others if other.id != agent.id), agent)
    keys = tuple(story.key(number) for number in numbers)
    story.hear(EvidenceFound(agent.id, agent.incarnation, HostTrust(method, keys)))


def shows(story: Story, agent: Agent, number: int | None) -> None:
    """Answer an agent's examination: with this key, or not at all."""
    key, message = ("", "no answer in time") if number is None else (story.key(number), "")
    story.hear(KeyExamined(agent.id, agent.incarnation, key, message))


def code(story: Story, agent: Agent) -> str | None:
    """Return why an agent is in quarantine, None where it is not."""
    mark = story.record(agent).quarantine
    return mark.code if mark else None


# --- possession and strength ---


def test_a_claim_harms_no_agent_that_was_dialled_with_the_key(story: Story) -> None:
    """A console block that lists the keys of a whole fleet quarantines its own machine only."""
    fleet = [story.agent(f"honest-{number}") for number in range(10, 13)]
    for number, agent in enumerate(fleet, start=10):
        story.up(agent, number)
    forger = story.agent("forger")

    claims(story, forger, 10, 11, 12)

    assert story.act() == ()
    assert [story.status(agent).phase for agent in fleet] == [Phase.UP] * 3
    mark = story.record(forger).quarantine
    assert mark is not None
    assert mark.code == "host-key-shared"
    assert fleet[0].id in mark.message
    assert "has shown it" in mark.message


def test_possession_protects_the_other_keys_of_the_same_evidence_by_not_needing_them(story: Story) -> None:
    """An agent that was dialled with one of its keys is not touched by a claim to the others."""
    honest, forger = story.agent("honest"), story.agent("forger")
    claims(story, honest, OWN, OTHER)
    story.act()
    story.dialled(honest, OWN)

    claims(story, forger, OTHER)

    assert code(story, honest) is None
    assert story.world.key_holders[story.key(OWN)] == honest.id


def test_possession_outlives_a_restart(story: Story) -> None:
    """A forger that comes first after a restart harms nobody either."""
    honest, forger = story.agent("honest"), story.agent("forger")
    story.up(honest, OWN)
    story.world = restored(Memory(story.world.records), story.now)
    story.hear(Reconfigured(story.rules))

    claims(story, forger, OWN)

    assert (code(story, honest), code(story, forger)) == (None, "host-key-shared")


def test_possession_holds_while_the_evidence_is_asked_for_again(story: Story) -> None:
    """Between two lives of a tunnel a certificate's key is as little for others to claim."""
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY, Method.CONSOLE)})))
    honest, forger = story.agent("honest"), story.agent("forger")
    claims(story, honest, OWN, method=Method.AUTHORITY)
    story.act()
    story.dialled(honest, OWN)
    story.ended(honest)
    assert story.record(honest).trust is None

    claims(story, forger, OWN)

    assert (code(story, honest), code(story, forger)) == (None, "host-key-shared")


def test_possession_ends_when_the_agent_leaves(story: Story) -> None:
    """An agent that comes back with a key that another has shown meanwhile is the one that is refused."""
    first, second = story.agent("first"), story.agent("second")
    story.up(first, OWN)
    story.listed(gone=frozenset({first.id}))
    story.act()
    story.ended(first, None)
    story.up(second, OWN)

    story.listed(first, second)

    assert (code(story, first), code(story, second)) == ("host-key-shared", None)


def test_a_worker_of_an_earlier_incarnation_proves_nothing_of_the_machine_that_is_there_now(story: Story) -> None:
    """Its report may come after the rebuild."""
    agent = story.agent()
    story.dialling(agent, OWN)
    story.listed(replace(agent, incarnation="2"))

    story.dialled(agent, OWN)

    assert story.record(agent).possessed == ()


def test_stronger_evidence_quarantines_only_the_weaker_claimant(story: Story) -> None:
    """Whichever of the two came first."""
    for number, (first, second) in enumerate([(Method.TOFU, Method.CONSOLE), (Method.CONSOLE, Method.TOFU)], start=10):
        early, late = story.agent(f"early-{number}"), story.agent(f"late-{number}")

        claims(story, early, number, method=first)
        claims(story, late, number, method=second)

        weaker, stronger = (early, late) if first is Method.TOFU else (late, early)
        assert (code(story, weaker), code(story, stronger)) == ("host-key-shared", None)
        assert story.world.key_holders[story.key(number)] == stronger.id
        mark = story.record(weaker).quarantine
        assert mark is not None
        assert "has stronger evidence for it" in mark.message


def test_an_agent_is_refused_that_shows_a_key_which_another_has_shown(story: Story) -> None:
    """Two machines with one private key: the first that was dialled goes on."""
    first, second = story.agent("first"), story.agent("second")
    claims(story, first, OWN, OTHER)
    claims(story, second, VICTIMS)
    story.act()
    story.dialled(first, OWN)
    story.dialled(second, VICTIMS)
    life = story.status(first).life
    third = story.agent("third")
    claims(story, third, OTHER)
    story.act()
    story.dialled(third, OTHER)

    story.hear(TunnelDialled(first.id, life, "10.0.0.1:22", host_key=story.key(OTHER)))

    assert (code(story, first), code(story, third)) == ("host-key-shared", None)
    assert story.act() == (CloseTunnel(first.id, life, Manner.REVOKE),)


# --- a forger that came first ---


def test_a_forger_that_is_up_with_its_own_key_gives_up_what_it_has_not_shown(story: Story) -> None:
    """The agent whose key it had named comes up all the same, and neither harms the other."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, OWN, VICTIMS)
    story.act()
    story.dialled(forger, OWN)

    story.up(honest, VICTIMS)

    assert (code(story, forger), code(story, honest)) == (None, None)


def test_a_forger_that_was_refused_claims_nothing_any_more(story: Story) -> None:
    """It was dialled, showed another key than it had named, and blocks nobody from then on."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, VICTIMS)
    story.act()
    story.hear(TunnelEnded(forger.id, 1, replace(story.failure(), code="host-key-mismatch")))

    story.up(honest, VICTIMS)

    assert (code(story, forger), code(story, honest)) == ("host-key-mismatch", None)


# --- disputes ---


def test_equal_claims_without_possession_quarantine_both_and_have_both_examined(story: Story) -> None:
    """The tunnel that is being dialled is closed first; each agent is asked for the disputed key alone."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, VICTIMS, OWN)
    story.act()

    claims(story, honest, VICTIMS)

    assert [story.status(agent).phase for agent in (forger, honest)] == [Phase.CONNECTING, Phase.QUARANTINED]
    assert story.act() == (
        CloseTunnel(forger.id, 1, Manner.REVOKE),
        ExamineKey(honest, (story.key(VICTIMS),)),
    )
    story.ended(forger, None)
    assert story.act() == (ExamineKey(forger, (story.key(VICTIMS),)),)
    for one, other in ((forger, honest), (honest, forger)):
        mark = story.record(one).quarantine
        assert mark is not None
        assert other.id in mark.message
        assert "tunnelmgr release" in mark.message


def test_the_one_that_alone_shows_the_key_goes_on(story: Story) -> None:
    """The other showed another key, or could not be reached; it stays in quarantine, for a person to look at."""
    for number, answer in enumerate((OWN, None), start=20):
        forger, honest = story.agent(f"forger-{number}"), story.agent(f"honest-{number}")
        claims(story, forger, number)
        claims(story, honest, number)
        story.act()

        shows(story, honest, number)
        assert code(story, honest) == "host-key-shared"
        shows(story, forger, answer)

        assert (code(story, honest), code(story, forger)) == (None, "host-key-shared")
        assert story.record(honest).story[-1].step == "released"
        assert [step for step in story.steps(forger) if step in {"examined", "refused"}] == ["examined", "refused"]
        opened = [action.agent for action in story.act() if isinstance(action, OpenTunnel)]
        assert opened == [honest.id]


def test_twins_that_both_show_the_key_stay_in_quarantine(story: Story) -> None:
    """They cannot be told apart; an image with host keys in it does this. A third that only claims the key too goes."""
    one, other, third = story.agent("one"), story.agent("other"), story.agent("third")
    for agent in (one, other, third):
        claims(story, agent, OWN)
    story.act()

    shows(story, one, OWN)
    shows(story, third, OTHER)
    shows(story, other, OWN)

    marks = [story.record(agent).quarantine for agent in (one, other, third)]
    assert [mark.disputed for mark in marks if mark] == [(), (), ()]
    assert marks[0] is not None
    assert marks[0].message.startswith("cloud:one, cloud:other have shown one host key (SHA256:")
    assert story.act() == ()
    assert next_due(story.world) is None


def test_where_nobody_shows_the_key_all_are_asked_again_later(story: Story) -> None:
    """The honest one may be booting still; what it said is told once."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, OWN)
    claims(story, honest, OWN)
    story.act()

    for _ in range(2):
        shows(story, forger, None)
        shows(story, honest, None)
        assert story.act() == ()
        assert next_due(story.world) is not None
        story.now += 60
        assert len(story.act()) == 2
    shows(story, honest, OWN)

    assert code(story, honest) is None
    assert story.steps(forger).count("examined") == 1


def test_a_dial_that_was_under_way_when_the_dispute_began_counts_as_an_answer(story: Story) -> None:
    """Its handshake shows as much as an examination."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, honest, OWN)
    story.act()
    claims(story, forger, OWN)
    story.act()

    story.dialled(honest, OWN)
    shows(story, forger, None)

    assert (code(story, honest), code(story, forger)) == (None, "host-key-shared")


def test_a_dispute_ends_when_an_agent_with_stronger_evidence_comes(story: Story) -> None:
    """Those in dispute are refused, and asked for nothing more."""
    one, other, stronger = story.agent("one"), story.agent("other"), story.agent("stronger")
    claims(story, one, OWN, method=Method.TOFU)
    claims(story, other, OWN, method=Method.TOFU)

    claims(story, stronger, OWN)

    assert [code(story, agent) for agent in (one, other, stronger)] == ["host-key-shared", "host-key-shared", None]
    assert not any(isinstance(action, ExamineKey) for action in story.act())


def test_a_forger_in_dispute_over_two_keys_loses_both_at_the_first(story: Story) -> None:
    """The second of its victims goes on when it has shown its own key."""
    forger, first, second = story.agent("forger"), story.agent("first"), story.agent("second")
    claims(story, forger, 11, 12)
    claims(story, first, 11)
    claims(story, second, 12)
    story.act()

    shows(story, forger, None)
    shows(story, first, 11)
    shows(story, second, 12)

    assert [code(story, agent) for agent in (forger, first, second)] == ["host-key-shared", None, None]


def test_a_forger_that_is_refused_for_one_key_blocks_nobody_over_another(story: Story) -> None:
    """What it named besides is free at once, and no dispute begins over it."""
    strong, forger, honest = story.agent("strong"), story.agent("forger"), story.agent("honest")
    claims(story, honest, 12, method=Method.TOFU)
    claims(story, strong, 11)
    claims(story, forger, 12, 11, method=Method.TOFU)

    assert [code(story, agent) for agent in (strong, forger)] == [None, "host-key-shared"]
    assert code(story, honest) is None


def test_a_dispute_ends_when_the_others_leave(story: Story) -> None:
    """The one that is left goes on as soon as it shows the key."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, OWN)
    claims(story, honest, OWN)
    story.act()
    shows(story, honest, OWN)
    assert code(story, honest) == "host-key-shared"

    story.listed(honest, gone=frozenset({forger.id}))

    assert code(story, honest) is None


def test_a_rebuilt_machine_disputes_nothing(story: Story) -> None:
    """What its quarantine was about is gone with the machine; the quarantine stays."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, OWN)
    claims(story, honest, OWN)

    story.listed(honest, replace(forger, incarnation="2"))

    mark = story.record(forger).quarantine
    assert mark is not None
    assert mark.disputed == ()


def test_the_answer_of_an_examination_that_nobody_waits_for_changes_no_claim(story: Story) -> None:
    """The agent was released, rebuilt or forgotten meanwhile, or was never asked."""
    forger, honest = story.agent("forger"), story.agent("honest")
    shows(story, forger, OWN)
    claims(story, forger, OWN)
    shows(story, forger, OWN)
    claims(story, honest, OWN)
    story.act()
    story.hear(ReleaseRequested(honest.id, "looked at"))

    shows(story, honest, OWN)

    assert story.status(honest).phase is Phase.AWAITING_IDENTITY
    assert story.record(forger).possessed == ()
    assert not story.status(honest).working


def test_a_released_agent_has_to_show_its_key_again(story: Story) -> None:
    """What led into the quarantine is forgotten with it."""
    agent = story.agent()
    story.up(agent, OWN)
    story.hear(TunnelEnded(agent.id, 1, story.failure()))

    story.hear(ReleaseRequested(agent.id, "looked at"))

    assert story.record(agent).possessed == ()


def test_a_dispute_goes_on_after_a_restart(story: Story) -> None:
    """Who has to be asked is written down with the quarantine."""
    forger, honest = story.agent("forger"), story.agent("honest")
    claims(story, forger, OWN)
    claims(story, honest, OWN)
    story.world = restored(Memory(story.world.records), story.now)
    story.hear(Reconfigured(story.rules))

    assert {action.agent for action in story.act() if isinstance(action, ExamineKey)} == {forger, honest}
    shows(story, honest, OWN)
    shows(story, forger, None)

    assert (code(story, honest), code(story, forger)) == (None, "host-key-shared")
