"""The faults of a cluster, each with what it may cost the agents."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from watched_cluster import PATIENCE, WatchedCluster

from lab.controller import LabController
from lab.processes import until

FROZEN, DATABASE_AWAY, PARTITION = 15.0, 20.0, 25.0
"""Seconds."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault of a member or of the database.

    `bound` are the seconds without a listener, for this share of all agents at least; 0 means that no look at any agent
    finds none, and `quiet` for how many seconds from the beginning that holds. A planned event also breaks no pull.
    """

    name: str
    cause: Callable[[WatchedCluster, LabController], None]
    bound: float
    share: float = 1.0
    planned: bool = False
    quiet: float = 0.0


def restart(site: WatchedCluster, member: LabController) -> None:
    """Stop a member, which hands its agents over, and start it."""
    member.stop(PATIENCE)
    site.cluster.start(member)


def kill(site: WatchedCluster, member: LabController) -> None:
    """Kill a member, and start it when the others serve its agents."""
    member.kill()
    site.settle()
    site.cluster.start(member)


def freeze(_site: WatchedCluster, member: LabController) -> None:
    """Freeze a member; the others claim its agents meanwhile."""
    member.freeze()
    try:
        time.sleep(FROZEN)
    finally:
        member.resume()


def lose_machine(site: WatchedCluster, member: LabController) -> None:
    """Lose a member's machine without a last packet, and replace it when the others serve its agents."""
    site.cluster.lose(member)
    site.settle()
    site.cluster.replace(member)


def restart_database(site: WatchedCluster, _member: LabController) -> None:
    """Stop the database as a crash would, and start it at once."""
    site.database.stop()
    site.database.start()


def stop_database(site: WatchedCluster, _member: LabController) -> None:
    """Stop the database for longer than a lease lasts."""
    site.database.stop()
    time.sleep(DATABASE_AWAY)
    site.database.start()


def cut_from_database(site: WatchedCluster, member: LabController) -> None:
    """Lose all packets between a member and the database for longer than a lease lasts."""
    member.faults.cut_off(site.database.ip)
    try:
        time.sleep(PARTITION)
    finally:
        member.faults.heal()


def cut_from_agents(site: WatchedCluster, member: LabController) -> None:
    """Lose all packets between a member and all agents."""
    member.faults.cut_off(site.host.ip)
    try:
        time.sleep(PARTITION)
    finally:
        member.faults.heal()


def rebalance(site: WatchedCluster, _member: LabController) -> None:
    """Spread the agents over the members."""
    site.spread()


def drain(site: WatchedCluster, member: LabController) -> None:
    """Drain a member, and let it take agents again."""
    name = site.cluster.name(member)
    member.client.drain(name)
    until(lambda: not site.held(member), f"{name} has handed its agents over", timeout=PATIENCE, pause=0.2)
    member.client.drain(name, on=False)


FAULTS = (
    Fault("planned restart", restart, bound=0.15, share=0.99, planned=True),
    Fault("kill -9", kill, bound=5.0, share=0.99),
    Fault("frozen for 15 s", freeze, bound=25.0),
    Fault("machine lost", lose_machine, bound=25.0),
    Fault("database restarts", restart_database, bound=0.0),
    Fault("database away for 20 s", stop_database, bound=0.0),
    # At its end the member lets go, and the heirs ask for the ports in intervals of up to 5 s (`core/backoff.py`).
    Fault("member cut from the database for 25 s", cut_from_database, bound=5.0, quiet=PARTITION),
    Fault("member cut from all agents for 25 s", cut_from_agents, bound=40.0),
    Fault("rebalance", rebalance, bound=0.15, share=0.99, planned=True),
    Fault("drain and undo", drain, bound=0.15, share=0.99, planned=True),
)
