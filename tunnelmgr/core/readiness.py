"""Whether the controller can do its work now: the checks behind `/readyz` and `status --wait READY`."""

from dataclasses import dataclass

from tunnelmgr.core.health import DaemonHealth
from tunnelmgr.core.world import SourceView, Stage, World


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """One condition, whether it holds, and what was found."""

    name: str
    ok: bool
    message: str


def readiness(world: World, health: DaemonHealth) -> tuple[ReadinessCheck, ...]:
    """Return every check; the controller is ready if all of them hold.

    A source that has answered once and fails later keeps its agents, so it does not make the controller unready.
    """
    registry, cluster = health.registry, world.cluster
    checks = [
        ReadinessCheck("running", world.stage is Stage.RUNNING, _stage(world.stage)),
        ReadinessCheck(
            "registry", registry.reachable, "answers" if registry.reachable else registry.error or "not checked yet"
        ),
        ReadinessCheck("state", health.store_error is None, health.store_error or "written"),
    ]
    if cluster is not None:
        checks.append(ReadinessCheck("database", cluster.error is None, cluster.error or "answers"))
    return (*checks, *(_source(world, view) for view in world.sources.values()))


def _stage(stage: Stage) -> str:
    return "serving agents" if stage is Stage.RUNNING else "stopping"


def _source(world: World, view: SourceView) -> ReadinessCheck:
    name = f"source {view.name}"
    lease = None if world.cluster is None else world.cluster.sources.get(view.name)
    if world.cluster is not None and lease is not None and lease.holder != world.cluster.me:
        return ReadinessCheck(name, ok=True, message=f"polled by member {lease.holder}")
    if view.last_success is None:
        return ReadinessCheck(name, ok=False, message=view.error or "no complete answer yet")
    return ReadinessCheck(name, ok=True, message="has answered")
