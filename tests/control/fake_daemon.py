"""A daemon as the control server sees it: a world made for the test, and the requests that arrived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunnelmgr.config.changes import Preview
from tunnelmgr.control.agent_query import AgentQuery
from tunnelmgr.control.views import Json, agent_in
from tunnelmgr.core.activity import Refusal, TrafficSample, Transfer
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import Event
from tunnelmgr.core.health import DaemonHealth, DialCounts, FastPathHealth, LimitHealth, RegistryHealth, TrafficCounters
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.core.policies import Explained
from tunnelmgr.core.policy import GroupPolicy, judge
from tunnelmgr.core.registry_sharing import SharingReport
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Bindings, Endpoint, Forward, Phase, Probe, Resting, TunnelSpec, TunnelStatus, Up
from tunnelmgr.core.world import HistoryEntry, Quarantine, Record, SourceView, World
from tunnelmgr.errors import ConfigError
from tunnelmgr.gate.traffic import Traffic

NOW = 1_700_000_000.0
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"
FORWARD = Forward(
    "registry", (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)), Endpoint("127.0.0.1", 5000), "registry"
)


def record(name: str, **changes: object) -> Record:
    """Return the record of an agent of source `office`, proved by its pinned key."""
    agent = Agent(AgentId(f"static:{name}"), "1", "office", "ci", name, ("192.0.2.7",), 22)
    plain = Record(
        agent=agent,
        first_seen=NOW,
        changed=NOW,
        trust=HostTrust(Method.PINNED, (KEY,)),
        history=(HistoryEntry(NOW, "seen", "in source office"), HistoryEntry(NOW + 1, "evidence", "pinned")),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def up(**changes: object) -> Up:
    """Return the status of a tunnel that is up."""
    agent, trust = record("builder-1").agent, HostTrust(Method.PINNED, (KEY,))
    spec = TunnelSpec(agent.id, "1", agent.name, agent.group, agent.addresses, agent.port, (FORWARD,), trust)
    plain = Up(NOW + 2, 1, spec, Probe(NOW + 3, 1.25), bindings=Bindings(FORWARD.listen))
    return replace(plain, **changes)  # type: ignore[arg-type]


def world(*entries: tuple[Record, TunnelStatus | None]) -> World:
    """Return a world with these agents."""
    return World(
        rules=Rules(forwards=(FORWARD,), trust={"office": (Method.PINNED,)}),
        sources={"office": SourceView("office", ok=True, last_success=NOW)},
        records={each.agent.id: each for each, _ in entries},
        tunnels={each.agent.id: status for each, status in entries if status is not None},
    )


def agents_view(
    world: World, traffic: Mapping[AgentId, TrafficCounters] | None = None, *, departed: bool = False
) -> list[Json]:
    """Return the agents as `/v1/agents` does without parameters."""
    query = AgentQuery(departed=departed)
    found = query.ordered(query.matching(world, world.records.values(), traffic or {}))
    return [agent_in(world, one.record, (traffic or {}).get(one.record.agent.id)) for one in found]


def fleet() -> World:
    """Return a world with an agent in each phase."""
    lost = Resting(
        Phase.DOWN,
        NOW,
        failures=3,
        retry_at=NOW + 60,
        error="unreachable",
        message="cannot reach 192.0.2.7 port 22: Connection refused",
    )
    marked = Quarantine(NOW, "host-key-mismatch", "the machine at 192.0.2.7 port 22 holds another host key")
    return world(
        (record("builder-1"), up()),
        (record("builder-2"), lost),
        (record("builder-3", quarantine=marked), None),
        (record("builder-4", trust=None), None),
        (record("other-1", present=False, changed=NOW + 9), None),
    )


@dataclass
class FakeDaemon:
    """The operations that the server needs, controlled by the test."""

    world: World = field(default_factory=fleet)
    traffic: Mapping[AgentId, Traffic] = field(default_factory=dict)
    registry: RegistryHealth = field(default_factory=lambda: RegistryHealth(reachable=True, loopback_only=True))
    store_error: str | None = None
    fast_path: FastPathHealth = field(default_factory=FastPathHealth)
    sharing: Sequence[SharingReport] = ()
    limits: Sequence[LimitHealth] = ()
    dials: DialCounts = field(default_factory=DialCounts)
    plan: Preview = field(default_factory=lambda: Preview((), (), ()))
    previewed: tuple[str, str] = ("", "")
    bad: ConfigError | None = None
    remarks: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    drained: list[tuple[str, bool]] = field(default_factory=list)
    requests: list[tuple[str, int | None, str, str, int]] = field(default_factory=list)
    reloads: int = 0
    running: list[Transfer] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    samples: list[TrafficSample] = field(default_factory=list)

    def health(self) -> DaemonHealth:
        """Return the health that the test set."""
        return DaemonHealth(
            "registry-1",
            "1.2.3",
            12.34,
            self.registry,
            self.store_error,
            fast_path=self.fast_path,
            sharing=self.sharing,
            limits=self.limits,
            dials=self.dials,
        )

    def transfers(self) -> list[Transfer]:
        """Return the transfers that the test set."""
        return self.running

    def refusals(self) -> list[Refusal]:
        """Return the refusals that the test set."""
        return self.refused

    def last_hour(self) -> list[TrafficSample]:
        """Return the samples that the test set."""
        return self.samples

    def report(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def note_request(self, who: str, uid: int | None, method: str, path: str, status: int) -> None:
        """Keep who requested what."""
        self.requests.append((who, uid, method, path, status))

    def drain_member(self, member: str, *, on: bool) -> None:
        """Keep who drains."""
        self.drained.append((member, on))

    def rebalance(self) -> int:
        """Return that two agents are offered."""
        return 2

    def explain(self, agent: AgentId, action: str, repository: str, forward: str) -> Explained:
        """Judge by a policy that allows pulls, and pushes below team/."""
        del agent
        if action not in {"pull", "push", "delete"}:
            raise ValueError(f"{action!r} is none of pull, push and delete")
        policy = GroupPolicy.build("ci", pull=["**"], push=["team/*"])
        return Explained(forward or FORWARD.name, judge(RegistryAction(action), repository, policy))

    async def preview(self, text: str, file: str) -> Preview:
        """Return the preview that the test has set, and refuse an invalid text if the test says so."""
        self.previewed = text, file
        if self.bad is not None:
            raise self.bad
        return self.plan

    async def reload(self) -> list[str]:
        """Count the reload, and refuse it if the test says so."""
        self.reloads += 1
        if self.bad is not None:
            raise self.bad
        return self.remarks
