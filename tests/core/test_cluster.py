"""A member of a cluster: what it begins, takes in from the others, writes and requests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.cluster_messages import Incoming, merged
from tunnelmgr.core.events import (
    AgentQuarantined,
    ClusterChanged,
    SeedAdded,
    StateShared,
    TunnelBound,
    TunnelDialled,
    TunnelProbed,
)
from tunnelmgr.core.evolve.shared import new_seeds
from tunnelmgr.core.lease_requests import (
    ZONE_LABEL,
    Situation,
    Zones,
    agent_holdings,
    forgotten,
    new_statuses,
    progress,
    requested,
    unstored_quarantines,
    zone_of,
)
from tunnelmgr.core.ownership import NOBODY, Lease, LeaseChange, Member, Progress, Step
from tunnelmgr.core.persistence import changes
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, desired
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import World

if TYPE_CHECKING:
    from tests.core.conftest import History

ME, OTHER = Member("me"), Member("other")
MEMBERS = {member.name: member for member in (ME, OTHER)}
MINE, THEIRS = Lease("me", 1), Lease("other", 1)
OFFERED = Lease("other", 1, successor="me")


def cluster(agent: Agent, lease: Lease | None, phase: str = "up") -> Cluster:
    """Return what this member knows, with the agent's lease and what its holder reports of it."""
    agents = {} if lease is None else {agent.id: lease}
    return Cluster("me", MEMBERS, agents, remote={agent.id: RemoteStatus(phase)}, expires=10_000.0)


def join(history: History, agent: Agent, lease: Lease | None, phase: str = "up") -> None:
    """Let the database tell who holds the agent."""
    history.receive(ClusterChanged(cluster(agent, lease, phase)))


@pytest.mark.parametrize("lease", [None, THEIRS, replace(MINE, successor="other", ready=True)])
def test_nothing_begins_for_an_agent_that_another_member_should_serve(history: History, lease: Lease | None) -> None:
    """Without a lease, or once the successor is ready, this member neither searches nor dials."""
    agent = history.agent()
    history.believed(agent)
    join(history, agent, lease)

    assert (history.act(), desired(history.world)) == ((), {})


@pytest.mark.parametrize(
    ("lease", "rival"), [(MINE, ""), (OFFERED, "other"), (replace(MINE, previous="other"), "other")]
)
def test_the_holder_and_the_successor_dial(history: History, lease: Lease, rival: str) -> None:
    """The dial names the member that may still listen on the agent."""
    agent = history.agent()
    history.believed(agent)
    join(history, agent, lease)

    (action,) = history.act()

    assert isinstance(action, OpenTunnel)
    assert action.rival == rival
    assert list(desired(history.world)) == [agent.id]


def test_nothing_new_begins_once_the_leases_may_have_ended(history: History) -> None:
    """An isolated member keeps the tunnels that stand, and dials nobody."""
    standing, new = history.agent("standing"), history.agent("new")
    history.up(standing)
    history.believed(new, 2)
    leases = {standing.id: MINE, new.id: MINE}
    history.receive(ClusterChanged(Cluster("me", MEMBERS, leases, expires=history.now, error="away")))

    assert history.act() == ()


@pytest.mark.parametrize("lease", [THEIRS, replace(MINE, successor="other", ready=True), None])
def test_a_tunnel_whose_lease_has_gone_is_drained(history: History, lease: Lease | None) -> None:
    """Transfers may finish, and the listener goes to the other member."""
    agent = history.agent()
    history.up(agent)
    join(history, agent, lease)

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)


def test_only_the_holder_writes_and_it_names_its_term(history: History) -> None:
    """A member without the lease has nothing to write about the agent; without a cluster no term is needed."""
    agent = history.agent()
    history.believed(agent)
    alone = changes(World(), history.world)
    join(history, agent, THEIRS)
    theirs = changes(World(), history.world)
    join(history, agent, replace(MINE, term=7))
    mine = changes(World(), history.world)

    assert (len(alone.records), alone.terms) == (1, None)
    assert (theirs.records, theirs.terms) == ((), {})
    assert (len(mine.records), mine.terms) == (1, {agent.id: 7})


def test_what_another_member_wrote_is_adopted_but_not_of_ones_own_agents(history: History) -> None:
    """Evidence, quarantine and history come from the holder; presence and addresses from the source."""
    agent = history.agent()
    history.listed(agent)
    join(history, agent, THEIRS)
    trust = history.trust(9, Method.TOFU)
    written = replace(history.record(agent), proved=trust, first_seen=1.0, present=False)

    history.receive(StateShared((written,)))
    adopted = history.record(agent)
    join(history, agent, MINE)
    history.receive(StateShared((replace(written, proved=None),)))

    assert (adopted.trust, adopted.proved, adopted.first_seen, adopted.present) == (trust, trust, 1.0, True)
    assert history.record(agent) == adopted
    assert history.world.holds(agent.id)


def test_an_agent_that_no_source_has_listed_here_is_taken_in_whole(history: History) -> None:
    """A record of another incarnation than the one that is listed here is left alone."""
    agent, rebuilt = history.agent("new"), history.agent("rebuilt", incarnation="2")
    history.listed(rebuilt)
    join(history, agent, THEIRS)
    new = replace(history.record(rebuilt), agent=agent)
    old = replace(history.record(rebuilt), agent=replace(rebuilt, incarnation="1"), first_seen=1.0)

    history.receive(StateShared((new, old)))
    before = history.world
    history.receive(StateShared((new,)))

    assert history.record(agent).agent == agent
    assert history.record(rebuilt).first_seen != 1.0
    assert history.world is before, "what is known already changes nothing"


def test_a_seed_serves_the_agent_that_was_stored_first(history: History) -> None:
    """An agent that this member had proved by a seed which another member gave away first loses that proof."""
    agent, other = history.agent("a"), history.agent("b")
    seed = Seed("s", history.key(), 9e9)
    history.listed(agent)
    history.receive(SeedAdded(replace(seed, holder=agent.id)))
    record = replace(history.record(agent), proved=HostTrust(Method.SEEDED, (history.key(),)))
    history.world = history.world.with_record(replace(record, trust=record.proved))

    assert new_seeds(history.world, [seed]) == ()
    taken = replace(seed, holder=other.id)
    history.receive(StateShared((), new_seeds(history.world, [taken, replace(seed, id="t")])))

    assert (history.record(agent).trust, history.record(agent).proved) == (None, None)
    assert history.world.seeds == {"s": taken, "t": replace(seed, id="t")}
    history.receive(StateShared((), (replace(taken, holder=agent.id),)))
    assert history.record(agent).proved is None


def test_a_member_claims_offers_and_reports(history: History) -> None:
    """A new agent is claimed by one member; a draining one offers what it holds and reports its tunnels."""
    agent = history.agent(labels=((ZONE_LABEL, "eu-1"),))
    history.listed(agent)
    assert requested(history.world, ["cloud"], Situation(ME)) == []
    join(history, agent, None)
    near = replace(ME, zone="eu-1")

    claims = requested(history.world, ["cloud"], Situation(near))
    join(history, agent, MINE)
    offers = requested(history.world, [], Situation(replace(near, draining=True)))

    assert LeaseChange("agent", agent.id, Step.CLAIM, "me", 0) in claims
    assert offers == [LeaseChange("agent", agent.id, Step.OFFER, "me", 1, "other")]
    assert new_statuses(history.world, World()) == {agent.id: RemoteStatus("awaiting-identity")}
    assert new_statuses(history.world, history.world) == {}
    assert new_statuses(World(), World()) == {}
    assert (zone_of(history.record(agent)), zone_of(replace(history.record(agent), agent=history.agent()))) == (
        "eu-1",
        "",
    )


def test_the_progress_of_a_takeover(history: History) -> None:
    """The successor is ready once it has logged in, and takes the lease once it listens."""
    agent = history.agent()
    history.believed(agent)
    join(history, agent, OFFERED)

    def now() -> Progress:
        assert history.world.cluster is not None
        return progress(history.world, history.world.cluster, agent.id)

    seen = [now()]
    history.act()
    seen.append(now())
    history.receive(TunnelDialled(agent.id, 1, agent.address, login_key="SHA256:x", host_key=history.key()))
    seen.append(now())
    history.receive(TunnelBound(agent.id, 1, history.listen))
    seen.append(now())
    history.receive(TunnelProbed(agent.id, 1, 0.02))
    seen.append(now())
    history.ended(agent)
    seen.append(now())

    assert seen == [
        Progress.NONE,
        Progress.NONE,
        Progress.LOGGED_IN,
        Progress.LISTENING,
        Progress.LISTENING,
        Progress.FAILED,
    ]
    join(history, agent, OFFERED, phase="quarantined")
    assert now() is Progress.LISTENING, "there is no listener to wait for"


def test_an_unknown_agent_has_no_member() -> None:
    """`serves` and `other` are about leases only."""
    agent = Agent(id="cloud:x", incarnation="1", source="cloud", group="ci", name="x", addresses=())  # type: ignore[arg-type]
    empty = Cluster("me")

    assert (empty.serves(agent.id), empty.other(agent.id), World().holds(agent.id)) == (False, None, True)


def test_a_state_is_told_once_and_again_after_it_has_changed(history: History) -> None:
    """What the others know is not repeated; an agent that this member has just taken over is always told."""
    agent = history.agent()
    history.believed(agent)
    join(history, agent, THEIRS)
    theirs = history.world
    join(history, agent, MINE)
    taken = history.world
    history.act()

    assert new_statuses(taken, theirs) == {agent.id: RemoteStatus("down")}
    assert new_statuses(history.world, taken) == {agent.id: RemoteStatus("connecting")}
    held = history.world
    join(history, agent, replace(MINE, term=3))
    assert new_statuses(history.world, held) == {agent.id: RemoteStatus("connecting")}
    join(history, agent, replace(MINE, previous="other"))
    history.receive(TunnelDialled(agent.id, 1, agent.address, host_key=history.key()))
    assert new_statuses(history.world, history.world.with_record(history.record(agent))) == {}
    assert new_statuses(taken, World(cluster=history.world.cluster)) == {agent.id: RemoteStatus("down")}


def test_an_agent_that_its_holder_cannot_reach_is_taken_over_only_after_a_login(history: History) -> None:
    """The successor has to try by itself; if the holder is to stop, it takes the agent at once."""
    agent = history.agent()
    history.believed(agent)
    join(history, agent, OFFERED, phase="down")
    assert history.world.cluster is not None
    stopping = replace(history.world.cluster, members={**MEMBERS, "other": replace(OTHER, draining=True)})
    gone = replace(history.world.cluster, members={"me": ME})

    seen = [progress(history.world, one, agent.id) for one in (history.world.cluster, stopping, gone)]

    assert seen == [Progress.NONE, Progress.LISTENING, Progress.LISTENING]


def test_an_agent_that_this_member_is_to_serve_is_tried_at_once(history: History) -> None:
    """A try that failed long ago delays nothing once the lease comes to this member; one that it keeps, waits."""
    agent, kept = history.agent("a"), history.agent("b")
    history.believed(agent, 1)
    history.believed(kept, 2)
    history.act()
    for one in (agent, kept):
        history.ended(one)
    before = history.world

    def failures(lease: Lease, moved: Agent) -> int:
        history.world = before
        leases = {agent.id: lease, kept.id: MINE}
        changed = Cluster("me", MEMBERS, leases, expires=10_000.0)
        history.receive(ClusterChanged(changed, frozenset({moved.id})))
        return history.world.status(agent.id).failures

    assert [failures(OFFERED, agent), failures(THEIRS, agent), failures(OFFERED, kept)] == [0, 1, 1]
    history.receive(ClusterChanged(Cluster("me", MEMBERS, {}), frozenset({agent.id})))
    history.receive(ClusterChanged(Cluster("me", MEMBERS, {kept.id: MINE}), frozenset({kept.id})))
    assert history.world.status(kept.id).failures == 0


def test_an_isolated_member_serves_nobody(history: History) -> None:
    """After `isolation_limit`, its tunnels drain, but it still knows what it held."""
    agent = history.agent()
    history.up(agent)
    join(history, agent, MINE)
    assert history.world.cluster is not None
    history.receive(ClusterChanged(replace(history.world.cluster, isolated=True)))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)
    assert history.world.holds(agent.id)


def test_a_quarantine_that_could_not_be_stored_goes_to_the_new_holder(history: History) -> None:
    """What the database has already is not sent; the new holder keeps its own reason if it has one."""
    agent, other = history.agent("a"), history.agent("b")
    for one in (agent, other):
        history.listed(one)
    stored = history.world
    found = AgentQuarantined(agent.id, agent.incarnation, "host-key-mismatch", "another machine")
    history.receive(found)
    history.receive(replace(found, message="later"))
    history.receive(replace(found, agent=other.id, incarnation="earlier"))
    unknown = history.agent("unknown").id
    history.receive(replace(found, agent=unknown))

    assert history.record(agent).quarantine is not None
    assert history.record(other).quarantine is None
    assert unstored_quarantines(history.world, stored, [agent.id, other.id, unknown]) == [found]
    assert unstored_quarantines(history.world, World(), [agent.id]) == [found]
    assert unstored_quarantines(history.world, history.world, [agent.id]) == []


def test_a_member_releases_what_it_has_forgotten(history: History) -> None:
    """An agent and a source that are no longer known are released by their holder."""
    agent = history.agent()
    join(history, agent, MINE)
    assert history.world.cluster is not None
    cluster = replace(history.world.cluster, sources={"cloud": Lease("me", 3), "kept": Lease("me", 1)})
    history.receive(ClusterChanged(cluster))

    assert forgotten(history.world, cluster) == {agent.id}
    assert requested(history.world, ["kept"], Situation(ME, forgotten(history.world, cluster))) == [
        LeaseChange("agent", agent.id, Step.RELEASE, "me", 1),
        LeaseChange("source", "cloud", Step.RELEASE, "me", 3),
    ]


def test_zones_are_those_of_the_agents_that_are_present(history: History) -> None:
    """An agent that left, or that nobody knows, has no zone."""
    agent, gone = history.agent("a", labels=((ZONE_LABEL, "eu-1"),)), history.agent("b")
    for one in (agent, gone):
        history.listed(one)
    history.world = history.world.with_record(replace(history.record(gone), present=False))
    zones = Zones(history.world.records)

    assert (dict(zones), len(zones), zones.get(gone.id), zones.get("x")) == ({agent.id: "eu-1"}, 1, None, None)
    join(history, agent, MINE, phase="connecting")
    assert history.world.cluster is not None
    assert agent_holdings(history.world, history.world.cluster, Situation(ME)).unsettled == {agent.id}


def test_news_are_merged_into_the_view_and_what_nobody_holds_leaves_it(history: History) -> None:
    """Without news the same mappings stay; a complete answer replaces everything."""
    agent, other = history.agent("a").id, history.agent("b").id
    known = Cluster("me", MEMBERS, {agent: MINE, other: THEIRS}, {"cloud": MINE}, {agent: RemoteStatus("up")})
    nothing = Incoming(MEMBERS, {}, {}, {}, (), (), (), (), complete=False, accepted=0)
    news = replace(
        nothing,
        agents={other: Lease(NOBODY, 1)},
        sources={"cloud": Lease(NOBODY, 1), "office": THEIRS},
        statuses={other: RemoteStatus("up"), agent: RemoteStatus("down")},
    )

    same, merged_news = merged(known, nothing, 7.0), merged(known, news, 7.0)

    assert (same.agents is known.agents, same.sources is known.sources, same.expires) == (True, True, 7.0)
    assert (merged_news.agents, merged_news.sources) == ({agent: MINE}, {"office": THEIRS})
    assert merged_news.remote == {agent: RemoteStatus("down")}
    assert merged(known, replace(nothing, complete=True), 7.0) == Cluster("me", MEMBERS, expires=7.0)
