"""Which evidence counts over time: through changes, restarts, rebuilds and reloads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    AgentEnded,
    EvidenceAbsent,
    EvidenceFound,
    FeedClosed,
    FeedReported,
    Reconfigured,
    ReleaseRequested,
)
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import History


# --- evidence that changes, or weakens ---


@pytest.mark.parametrize("method", [Method.AUTHORITY, Method.LABEL, Method.PINNED])
@pytest.mark.parametrize("restart", [False, True])
def test_another_key_by_the_same_method_quarantines(history: History, method: Method, restart: bool) -> None:
    """Evidence of another key by the same method quarantines the agent, also after a restart, and names both keys."""
    agent = history.agent()
    history.accept(method)
    history.prove(agent, method)
    history.act()
    if restart:
        history.restart()
    else:
        history.ended(agent)
        history.receive(Reconfigured(replace(history.rules, trust={"cloud": ()})), Reconfigured(history.rules))
    history.now += 1000
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(2, method)))

    assert history.status(agent).phase is Phase.QUARANTINED
    message = history.status(agent).message
    assert f"{method} evidence proved {agent.id} by {fingerprint(history.key(1))}" in message
    assert f"{method} evidence now names {fingerprint(history.key(2))}" in message
    assert ("host_key in the configuration may be wrong" in message) == (method is Method.PINNED)
    assert message.endswith(f'run: tunnelmgr release {agent.id} --reason "…"')
    assert not [action for action in history.act() if isinstance(action, OpenTunnel)]


@pytest.mark.parametrize("restart", [False, True])
def test_weaker_evidence_does_not_count_after_stronger_evidence(history: History, restart: bool) -> None:
    """After a certificate, a label is neither requested nor accepted, so spoiling the certificate gains nothing."""
    agent = history.agent()
    history.accept(Method.AUTHORITY, Method.LABEL)
    history.prove(agent, Method.AUTHORITY)
    if restart:
        history.restart()
    else:
        history.act()
        history.ended(agent)
        history.now += 1000
    (search,) = history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(1, Method.LABEL)))

    assert isinstance(search, SeekEvidence)
    assert search.at_least is Method.AUTHORITY
    assert history.record(agent).trust is None
    assert "label: is weaker than authority" in history.status(agent).message


def test_stronger_evidence_of_the_same_key_replaces_weaker_evidence(history: History) -> None:
    """Stronger evidence of the same key replaces the weaker evidence, and later evidence is measured by it."""
    agent = history.agent()
    history.accept(Method.LABEL)
    history.prove(agent, Method.LABEL)
    history.accept(Method.AUTHORITY, Method.LABEL)
    history.act()
    history.ended(agent)
    history.now += 1000
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(1, Method.AUTHORITY)))

    assert history.record(agent).proved == history.trust(1, Method.AUTHORITY)
    assert history.record(agent).quarantine is None


def test_a_release_forgets_the_measure(history: History) -> None:
    """After a release, evidence of another key or by a weaker method is accepted."""
    agent = history.agent()
    history.accept(Method.AUTHORITY, Method.LABEL)
    history.prove(agent, Method.AUTHORITY)
    history.act()
    history.ended(agent)
    history.now += 1000
    history.act()
    history.receive(EvidenceFound(agent.id, "1", history.trust(2, Method.AUTHORITY)))

    history.receive(ReleaseRequested(agent.id, "reinstalled"))
    history.prove(agent, Method.LABEL, 2)

    assert history.record(agent).trust == history.trust(2, Method.LABEL)


# --- rebuilding ---


def test_a_machine_that_is_being_rebuilt_is_left_alone(history: History) -> None:
    """The tunnel of a machine that is being rebuilt is revoked, and nothing begins until it runs again."""
    agent = history.agent()
    history.up(agent)
    history.prove(history.agent("other"), Method.CONSOLE, 2)

    history.listed(replace(agent, rebuilding=True), history.agent("other"))
    closing = history.act()[0]
    history.ended(agent, None)
    while_rebuilding = [action for action in history.act() if getattr(action, "agent", None) == agent]
    history.listed(agent, history.agent("other"))
    afterwards = [action for action in history.act() if isinstance(action, SeekEvidence)]

    assert isinstance(closing, CloseTunnel)
    assert closing.manner is Manner.REVOKE
    assert while_rebuilding == []
    assert [search.agent.incarnation for search in afterwards] == ["1#1"]
    assert afterwards[0].at_least is None


def test_the_key_from_before_a_rebuild_proves_nothing(history: History) -> None:
    """Evidence that was under way during a rebuild is about the old machine and is dropped."""
    agent = history.agent()
    history.accept(Method.TOFU)
    history.listed(agent)
    history.act()
    history.listed(replace(agent, rebuilding=True))

    history.receive(EvidenceFound(agent.id, "1", history.trust(1, Method.TOFU)))
    history.receive(EvidenceAbsent(agent.id, "1", "nothing"))

    assert history.record(agent).trust is None
    assert history.record(agent).agent.incarnation == "1#1"


def test_rebuilds_are_counted_through_a_restart(history: History) -> None:
    """A rebuild while the controller was stopped is a new incarnation, which the old pin does not prove."""
    agent = history.agent()
    history.accept(Method.TOFU)
    history.prove(agent, Method.TOFU)
    history.listed(replace(agent, rebuilding=True))
    history.listed(agent)

    history.restart()
    history.listed(agent)
    history.listed(replace(agent, rebuilding=True))

    assert history.record(agent).agent.incarnation == "1#2"


# --- events ---


def test_an_event_revokes_the_tunnel_and_a_listing_that_lags_does_not_bring_it_back(history: History) -> None:
    """An event that ends an agent revokes its tunnel, and no late listing brings it back, even after a restart."""
    agent = history.agent()
    history.up(agent)

    history.receive(AgentEnded("cloud", agent.id, "EC2 says that it is terminated"))
    (closing,) = history.act()
    history.ended(agent, None)
    history.listed(agent)
    history.restart()
    history.listed(agent)

    assert isinstance(closing, CloseTunnel)
    assert closing.manner is Manner.REVOKE
    assert not history.record(agent).present
    assert history.act() == ()


def test_a_repeated_event_changes_nothing(history: History) -> None:
    """An event that is delivered twice, as SQS may do, counts once."""
    agent = history.agent()
    history.listed(agent)
    history.receive(AgentEnded("cloud", agent.id, "over"))
    before = history.world

    history.receive(AgentEnded("cloud", agent.id, "over"))

    assert history.world is before


def test_a_closed_feed_is_no_longer_shown(history: History) -> None:
    """A source whose event feed was closed no longer shows the feed's last failure."""
    history.receive(FeedReported("cloud", "the queue is gone"))

    history.receive(FeedClosed("cloud"))

    view = history.world.sources["cloud"]
    assert (view.feed_ok, view.feed_error) == (None, None)


# --- authorities ---


def test_a_change_of_authorities_makes_every_certificate_be_checked_again(history: History) -> None:
    """If an authority is removed or revokes more, the source's tunnels by certificate are revoked and proved again."""
    agent, pinned = history.agent(), history.agent("pinned", source="file")
    believes = {"cloud": frozenset({"ca"}), "file": frozenset({"ca"})}
    methods = {"cloud": (Method.AUTHORITY,), "file": (Method.PINNED,)}
    history.rules = replace(history.rules, trust=methods, authorities=believes)
    history.receive(Reconfigured(history.rules))
    history.listed(pinned, source="file")
    history.receive(EvidenceFound(pinned.id, "1", history.trust(2, Method.PINNED)))
    history.prove(agent, Method.AUTHORITY)
    history.act()

    history.receive(
        Reconfigured(replace(history.rules, authorities=dict.fromkeys(believes, frozenset({"ca but not 7"}))))
    )

    (closing,) = history.act()
    assert isinstance(closing, CloseTunnel)
    assert (closing.agent, closing.manner) == (agent.id, Manner.REVOKE)
    assert history.record(agent).trust is None
    assert history.record(pinned).trust == history.trust(2, Method.PINNED)


@pytest.mark.parametrize(
    "authorities",
    [
        {"cloud": frozenset({"ca"})},
        {"cloud": frozenset({"ca", "next"})},
        {"cloud": frozenset({"ca"}), "file": frozenset({"other"})},
    ],
)
def test_an_added_authority_or_one_of_another_source_affects_no_tunnel(
    history: History, authorities: dict[str, frozenset[str]]
) -> None:
    """An additional authority, or a change of another source's authorities, ends no tunnel."""
    agent = history.agent()
    history.accept(Method.AUTHORITY, authorities=("ca",))
    history.prove(agent, Method.AUTHORITY)
    history.act()

    history.receive(Reconfigured(replace(history.rules, authorities=authorities)))

    assert history.act() == ()


# --- no hot loop ---


def test_a_dial_that_always_fails_waits_longer_each_time(history: History) -> None:
    """Waits between failing dials grow, although a certificate is sought and found before each."""
    agent = history.agent()
    history.accept(Method.AUTHORITY)
    history.listed(agent)
    dials, waits = 0, []

    while dials < 8:
        actions = history.act()
        if any(isinstance(action, SeekEvidence) for action in actions):
            history.receive(EvidenceFound(agent.id, "1", history.trust(1, Method.AUTHORITY)))
        elif actions:
            dials += 1
            history.ended(agent)
            due = history.status(agent).retry_at
            assert due is not None
            waits.append(due - history.now)
        else:
            due = history.status(agent).retry_at
            assert due is not None
            assert due > history.now
            history.now = due

    assert min(waits) > 0
    assert waits[-1] > 4 * waits[0]
    assert history.status(agent).failures == 8


def test_unacceptable_evidence_is_sought_less_and_less_often(history: History) -> None:
    """A method that repeatedly returns unacceptable evidence is asked less and less often."""
    agent = history.agent()
    history.accept(Method.AUTHORITY, Method.LABEL)
    history.prove(agent, Method.AUTHORITY)
    history.act()
    history.ended(agent)
    waits = []

    for _ in range(5):
        history.now = history.status(agent).retry_at or history.now
        history.act()
        history.receive(EvidenceFound(agent.id, "1", history.trust(1, Method.LABEL)))
        due = history.status(agent).retry_at
        assert due is not None
        waits.append(due - history.now)

    assert min(waits) > 1
    assert waits == sorted(waits) or waits[-1] > waits[0]


def test_a_release_accepts_weaker_evidence_after_a_change_of_methods(history: History) -> None:
    """An agent whose source now uses a weaker method is held back until a release, and then proved by that method."""
    agent = history.agent()
    history.believed(agent)
    history.accept(Method.TOFU)
    stuck = history.world.records[agent.id].held_back

    history.receive(ReleaseRequested(agent.id, "meant so"))
    history.act()
    history.receive(EvidenceFound(agent.id, agent.incarnation, history.trust(1, Method.TOFU)))

    assert stuck
    assert history.world.records[agent.id].trust == history.trust(1, Method.TOFU)
