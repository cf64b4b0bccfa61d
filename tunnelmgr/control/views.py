"""The world as JSON: the shapes that `status`, `list`, `show` and the socket's API share."""

from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any, NamedTuple, assert_never

from tunnelmgr.config.changes import Preview
from tunnelmgr.core.activity import Transfer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.health import AuditForwardHealth, CacheHealth, DaemonHealth, TracingHealth, TrafficCounters
from tunnelmgr.core.registry_sharing import SharingReport, seen_by
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.tunnel import (
    Connecting,
    Draining,
    Endpoint,
    Forward,
    Phase,
    Probe,
    Resting,
    Seeking,
    TunnelStatus,
    Up,
)
from tunnelmgr.core.world import HistoryEntry, Record, Stage, World, status_of

Json = dict[str, Any]


def agent_view(
    record: Record, status: TunnelStatus, forwards: tuple[Forward, ...], traffic: TrafficCounters | None
) -> Json:
    """Return one agent, as an element of `list --json`."""
    agent, trust, facts = record.agent, record.trust, _tunnel_facts(status)
    return {
        "agent": agent.id,
        "name": agent.name,
        "group": agent.group,
        "source": agent.source,
        "address": agent.addresses[0] if agent.addresses else None,
        "port": agent.port,
        "present": record.present,
        "phase": status.phase.value,
        "holder": None,
        "member": None,
        "since": time_view(status.since),
        "first_seen": time_view(record.first_seen),
        "trust": trust.method.value if trust else None,
        "evidence": trust.detail or None if trust else None,
        "fingerprints": list(trust.fingerprints) if trust else [],
        "login_key": facts.login_key,
        "error": status.error,
        "message": status.message or None,
        "failures": status.failures,
        "retry_at": time_view(facts.retry_at),
        "forwards": [_forward_view(forward, facts.held) for forward in forwards],
        "channels": traffic.channels if traffic else 0,
        "bytes_to_agent": traffic.to_agent if traffic else 0,
        "bytes_from_agent": traffic.from_agent if traffic else 0,
        "probe_ms": round(facts.probe.ms, 3) if facts.probe else None,
        "probed_at": time_view(facts.probe.at) if facts.probe else None,
    }


def history_view(record: Record) -> list[Json]:
    """Return an agent's history, oldest first.

    `uid` is the user who requested a step, null if no user did. `since` is when a repeated step was first taken, null
    for a step that was not repeated.
    """
    return [step_view(entry) for entry in record.history]


def step_view(entry: HistoryEntry) -> Json:
    """Return one step of a history."""
    return {
        "time": time_view(entry.at),
        "step": entry.step,
        "detail": entry.detail,
        "uid": entry.uid,
        "count": entry.count,
        "since": time_view(entry.since),
    }


def agent_in(world: World, record: Record, traffic: TrafficCounters | None) -> Json:
    """Return one agent of a world; in a cluster with its holder, and with what that reports of the tunnel."""
    view = agent_view(record, status_of(world, record), world.rules.forwards, traffic)
    cluster, id_ = world.cluster, record.agent.id
    if cluster is None or id_ not in cluster.agents:
        return view
    view["holder"] = view["member"] = cluster.agents[id_].holder
    if (remote := _remote(world, id_)) is not None:
        view |= {"phase": remote.phase, "error": remote.error, "message": remote.message or None}
    return view


def transfer_view(transfer: Transfer) -> Json:
    """Return one request in progress; bytes are those since it began."""
    return {
        "number": transfer.number,
        "agent": transfer.agent,
        "group": transfer.group,
        "forward": transfer.forward,
        "method": transfer.method,
        "action": str(transfer.action),
        "repository": transfer.repository,
        "reference": transfer.reference,
        "status": transfer.status or None,
        "bytes_to_agent": transfer.to_agent,
        "bytes_from_agent": transfer.from_agent,
        "seconds": round(transfer.seconds, 3),
    }


def preview_view(preview: Preview) -> Json:
    """Return what a reload would change, as `plan --json`."""
    return {
        "changes": [{"key": one.key, "before": one.before, "after": one.after} for one in preview.changes],
        "agents": [
            {
                "agent": one.agent,
                "name": one.name,
                "effect": one.effect.value,
                "before": one.before or None,
                "after": one.after or None,
            }
            for one in preview.agents
        ],
        "remarks": list(preview.remarks),
    }


def status_view(world: World, health: DaemonHealth) -> Json:
    """Return the controller's state, as `status --json`."""
    present = [record for record in world.records.values() if record.present]
    phases = Tally(phase_of(world, record) for record in present)
    by_source = Tally(record.agent.source for record in present)
    cluster = None if world.cluster is None else cluster_view(world.cluster, health.sharing)
    return {
        "controller": health.controller,
        "version": health.version,
        "uptime_s": round(health.uptime_s, 1),
        "draining": world.stage is not Stage.RUNNING,
        "agents": len(present),
        "up": phases[Phase.UP.value],
        "quarantined": phases[Phase.QUARANTINED.value],
        "phases": {phase.value: phases[phase.value] for phase in Phase},
        "trust": dict(Tally(record.trust.method.value for record in present if record.trust)),
        "sources": [
            {
                "name": view.name,
                "ok": view.ok,
                "last_success": time_view(view.last_success),
                "error": view.error,
                "missing": view.missing,
                "events": None if view.feed_ok is None else {"ok": view.feed_ok, "error": view.feed_error},
                "agents": by_source[view.name],
            }
            for view in world.sources.values()
        ],
        "cluster": cluster,
        "members": [] if cluster is None else [_in_short(member) for member in cluster["members"]],
        **_health_view(health),
    }


def cluster_view(cluster: Cluster, sharing: Sequence[SharingReport] = ()) -> Json:
    """Return the members of a cluster, as `members --json`."""
    agents = Tally(lease.holder for lease in cluster.agents.values())
    sources = {name: lease.holder for name, lease in cluster.sources.items()}
    me = cluster.members.get(cluster.me)
    return {
        "member": cluster.me,
        "database": {"ok": cluster.error is None, "error": cluster.error},
        "members": [
            {
                "name": member.name,
                "zone": member.zone or None,
                "capacity": member.capacity,
                "version": member.version,
                "alive": member.alive,
                "draining": member.draining,
                "heartbeat_s": round(member.seen, 1),
                "agents": agents[member.name],
                "sources": sorted(name for name, holder in sources.items() if holder == member.name),
                "same_rules": me is None or member.rules == me.rules,
                "registry": _sharing_view(cluster, member.name, sharing),
            }
            for member in cluster.members.values()
        ],
    }


def _in_short(member: Json) -> Json:
    """Return a member of `cluster_view` in short; `ok` says that it is alive and takes agents."""
    return {
        **{key: member[key] for key in ("name", "zone", "version", "agents")},
        "ok": member["alive"] and not member["draining"],
        "heartbeat_age_s": member["heartbeat_s"],
    }


def _sharing_view(cluster: Cluster, member: str, sharing: Sequence[SharingReport]) -> Json:
    """Return what a member's registry says of its own upload and of those of the others that are alive."""
    living = {name for name, one in cluster.members.items() if one.alive}
    reports = seen_by(sharing, member, living) if member in living else {}
    return {
        "upload": reports[member].sharing.value if member in reports else None,
        "sees_uploads_of": {writer: one.sharing.value for writer, one in sorted(reports.items()) if writer != member},
        "error": next((one.error for one in reports.values() if one.error), None),
    }


def _remote(world: World, agent: AgentId) -> RemoteStatus | None:
    """Return what another member reports of an agent that it holds."""
    if world.cluster is None or not world.is_held_elsewhere(agent):
        return None
    remote = world.cluster.remote.get(agent)
    return remote if remote is not None and remote.phase else None


def phase_of(world: World, record: Record) -> str:
    """Return an agent's phase; in a cluster as its holder reports it."""
    remote = _remote(world, record.agent.id)
    return remote.phase if remote is not None else status_of(world, record).phase.value


def _health_view(health: DaemonHealth) -> Json:
    return {
        "registry": {
            "reachable": health.registry.reachable,
            "loopback_only": health.registry.loopback_only,
            "error": health.registry.error,
            "checked_at": time_view(health.registry.checked_at),
        },
        "audit": {
            "ok": health.audit.error is None and not health.audit.lost_recently,
            "error": health.audit.error,
            "lost": health.audit.lost,
            "lost_recently": health.audit.lost_recently,
            "forwards": [_forward_health_view(forward) for forward in health.audit.forwards],
        },
        "fast_path": {"active": health.fast_path.active, "reason": health.fast_path.reason},
        "state": {"ok": health.store_error is None, "error": health.store_error},
        "cache": _cache_view(health.cache),
        "limits": [
            {
                "group": one.group,
                "limit": one.limit,
                "waiting": one.waiting,
                "waits": one.waits,
                "wait_s": round(one.waited_s, 3),
                "refused": one.refused,
            }
            for one in health.limits
        ],
        "tracing": _tracing_view(health.tracing),
    }


def _forward_health_view(forward: AuditForwardHealth) -> Json:
    return {
        "name": forward.name,
        "ok": forward.error is None,
        "error": forward.error,
        "sequence": forward.sequence,
        "behind": forward.behind,
        "dropped": forward.dropped,
        "last_success": time_view(forward.success_at),
    }


def _tracing_view(tracing: TracingHealth | None) -> Json | None:
    if tracing is None:
        return None
    return {
        "ok": tracing.error is None,
        "error": tracing.error,
        "exported": tracing.exported,
        "failed": tracing.failed,
        "dropped": tracing.dropped,
    }


def _cache_view(cache: CacheHealth | None) -> Json | None:
    if cache is None:
        return None
    return {
        "path": cache.path,
        "size": cache.size,
        "used": cache.used,
        "blobs": cache.blobs,
        "hits": cache.hits,
        "misses": cache.misses,
        "bypassed": cache.bypassed,
        "bytes": cache.octets,
    }


def time_view(at: float | None) -> str | None:
    """Return a time as text, None if there is none."""
    return None if at is None else timestamp(at)


def find(world: World, wanted: str, *, strictly: bool = False) -> list[AgentId]:
    """Return the agents that `wanted` may mean: an id, the beginning of one (with or without its type), or a name.

    Anyone who can write tags chooses names, so a name must not divert a command from the agent that is meant:
    - A complete id, with or without its type, takes precedence over everything else.
    - A name counts only if the text has no colon, which ids have. It is then one candidate beside the ids that begin
      with the text.
    Of several candidates, present agents take precedence over those that left, except `strictly`, as for commands that
    change something.
    """
    if wanted in world.records:
        return [AgentId(wanted)]
    found = [id_ for id_ in world.records if id_.partition(":")[2] == wanted]
    if not found:
        by_prefix = [id_ for id_ in world.records if id_.startswith(wanted) or id_.partition(":")[2].startswith(wanted)]
        named = [id_ for id_, record in world.records.items() if record.agent.name == wanted and ":" not in wanted]
        found = list(dict.fromkeys((*by_prefix, *named)))
    if strictly:
        return found
    return [id_ for id_ in found if world.records[id_].present] or found


class _TunnelFacts(NamedTuple):
    """The facts that only some states of a tunnel have."""

    retry_at: float | None = None
    login_key: str | None = None
    held: tuple[Endpoint, ...] = ()
    probe: Probe | None = None


def _tunnel_facts(status: TunnelStatus) -> _TunnelFacts:
    match status:
        case Resting(retry_at=retry_at) | Seeking(resting=Resting(retry_at=retry_at)):
            return _TunnelFacts(retry_at=retry_at)
        case Connecting():
            return _TunnelFacts(login_key=status.login_key, held=status.bindings.held)
        case Up() | Draining():
            return _TunnelFacts(login_key=status.login_key, held=status.bindings.held, probe=status.probe)
    assert_never(status)


def _forward_view(forward: Forward, held: tuple[Endpoint, ...]) -> Json:
    return {
        "name": forward.name,
        "listen": [str(endpoint) for endpoint in forward.listen],
        "held": [str(endpoint) for endpoint in forward.listen if endpoint in held],
        "target": str(forward.target),
        "protocol": forward.protocol,
        "upstream": forward.upstream if forward.protocol == "registry" else None,
        "namespace": forward.namespace or None,
        "push_target": str(forward.push_target) if forward.push_target else None,
        "writer": forward.writer or None,
    }
