"""What a tunnel costs while nobody pulls: memory and CPU, for up to 2,000 in one process.

The crowd's agents have OpenSSH's own sshd and a probe every 15 s. Beside them stand, over the same agents, one `ssh -R`
under autossh for each with a keepalive every 15 s, and asyncssh's own forwarder, all of them in one process; both are
measured at a number that fits, and what 1,000 would take is that times the rest. Needs root.

    python benchmarks/scale.py [--steps 100,500,1000,2000] [--peers 100] [--seconds 12] [--json FILE]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crowd import Member, gather, listening, source_of
from figures import Bar, Spread, publish, table
from peers import KEEPALIVE, cpu_of, forward_command, have, machine, memory_of, ssh_command

from lab.agents import LabAgent
from lab.controller import LabController
from lab.namespaces import Machine
from lab.network import Lab
from lab.processes import Process, until

SETTLE = 5.0
"""Seconds after the last one is up, before the CPU is measured."""
PARTS = 3
"""Parts of the time of measuring; of their CPU the median counts."""
BATCH = 10
"""Peers that are started at once; an sshd that is dialled by more drops some."""


@dataclass(frozen=True)
class Cost:
    """What so many tunnels cost, in bytes and in shares of one core."""

    who: str
    tunnels: int
    resident: int
    share: int
    cpu: float


def cost(who: str, tunnels: int, groups: Sequence[int], seconds: float) -> Cost:
    """Measure the processes of some groups for a while; the CPU is the median of three parts of it."""
    time.sleep(SETTLE)
    shares = Spread.of(cpu_share(groups, seconds / PARTS) for _ in range(PARTS))
    memory = [memory_of(group) for group in groups]
    return Cost(who, tunnels, sum(one for one, _ in memory), sum(one for _, one in memory), shares.median)


def cpu_share(groups: Sequence[int], seconds: float) -> float:
    """Return the share of a core that some groups take."""
    before, began = sum(map(cpu_of, groups)), time.monotonic()
    time.sleep(seconds)
    return (sum(map(cpu_of, groups)) - before) / (time.monotonic() - began)


def ours(controller: LabController, crowd: Sequence[Member], steps: Sequence[int], seconds: float) -> list[Cost]:
    """Let the fleet grow step by step."""
    controller.configure(source_of([]), probe_interval=f"{KEEPALIVE}s")
    controller.start()
    costs = [cost("ours", 0, [os.getpgid(controller.pid)], seconds / 3)]
    for count in steps:
        controller.configure(source_of(crowd[:count]), probe_interval=f"{KEEPALIVE}s")
        controller.client.reload()
        until(lambda wanted=count: up(controller) == wanted, f"{count} are up", timeout=60 + count / 4, pause=0.5)
        costs.append(cost("ours", count, [os.getpgid(controller.pid)], seconds))
        print(f"  {costs[-1]}", file=sys.stderr)
    assert up(controller) == max(steps), "some were lost meanwhile"  # noqa: S101
    controller.kill()
    return costs


def up(controller: LabController) -> int:
    """Return how many tunnels are up."""
    return int(controller.client.status()["up"])


def pairs(where: Machine, agent: LabAgent, key: Path, crowd: Sequence[Member], seconds: float) -> Cost:
    """Hold one `ssh -R` under autossh for each."""
    started: list[Process] = []
    for first in range(0, len(crowd), BATCH):
        some = crowd[first : first + BATCH]
        for member in some:
            forward, place = "127.0.0.1:5000:127.0.0.1:5000", f"tunnel@{member.address}"
            words = ssh_command("autossh", key, forward, place, "-p", str(member.port))
            started.append(where.popen(words, env={"AUTOSSH_GATETIME": "0"}))
        until(lambda: listening(agent, len(crowd)) == len(started), "all of them listen", timeout=30, pause=0.5)
    found = cost("autossh and ssh", len(crowd), [one.pid for one in started], seconds)
    for one in started:
        one.end()
    until(lambda: not listening(agent, len(crowd)), "all of them are gone", timeout=60, pause=0.5)
    return found


def forwarder(where: Machine, agent: LabAgent, key: Path, crowd: Sequence[Member], seconds: float) -> Cost:
    """Hold all of them with asyncssh's own forwarder, in one process."""
    process = where.popen(forward_command(key, (f"{member.address}:{member.port}" for member in crowd)))
    until(lambda: listening(agent, len(crowd)) == len(crowd), "all of them listen", timeout=60, pause=0.5)
    found = cost("asyncssh", len(crowd), [process.pid], seconds)
    process.end()
    until(lambda: not listening(agent, len(crowd)), "all of them are gone", timeout=60, pause=0.5)
    return found


def run(steps: Sequence[int], peers: int, seconds: float) -> list[Cost]:
    """Measure all, one after the other."""
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        folder = Path(place)
        controller = LabController(lab.controller, folder / "controller")
        registry = lab.registry(lab.controller, folder / "registry")
        agent = lab.agent("crowd", "10.77.0.11", controller.authorized_keys)
        crowd = gather(agent, max(*steps, peers), folder / "crowd")
        key = controller.folder / "id_ed25519"
        costs = [forwarder(lab.controller, agent, key, crowd[:peers], seconds)]
        if have("autossh"):
            costs.append(pairs(lab.controller, agent, key, crowd[:peers], seconds))
        costs += ours(controller, crowd, steps, seconds)
        registry.stop()
        return costs


def rows(costs: Sequence[Cost]) -> list[list[str]]:
    """Return the table's lines."""
    base = next(one for one in costs if one.who == "ours" and not one.tunnels)
    lines = []
    for one in costs:
        empty = base if one.who == "ours" else Cost(one.who, 0, 0, 0, 0.0)
        count = one.tunnels or 1
        lines.append(
            [
                one.who,
                str(one.tunnels),
                f"{one.resident / 1e6:.0f} MB",
                f"{one.share / 1e6:.0f} MB",
                f"{one.resident / count / 1e3:.0f} KB" if one.tunnels else "",
                f"{(one.resident - empty.resident) / count / 1e3:.0f} KB" if one.tunnels else "",
                f"{one.cpu:.2%}",
                f"{one.cpu * 1000 / count:.2%}" if one.tunnels else "",
            ]
        )
    return lines


def bars(costs: Sequence[Cost]) -> list[Bar]:
    """Return what is aimed at."""
    held = {(one.who, one.tunnels): one for one in costs}
    found = []
    most = max((one for one in costs if one.who == "ours"), key=lambda one: one.tunnels)
    peer = next((one for one in costs if one.who.startswith("autossh")), None)
    if peer is not None:
        for name in ("resident", "share"):
            theirs, own = getattr(peer, name) / peer.tunnels, getattr(most, name) / most.tunnels
            found.append(Bar(f"{name} memory a tunnel to a pair of autossh and ssh", own / theirs, 0.1, least=False))
    if thousand := held.get(("ours", 1000)):
        found.append(Bar("CPU of 1,000 idle tunnels, of a core", thousand.cpu, 0.05, least=False))
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="100,500,1000,2000")
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=12.0, help="of measuring, at each step")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    costs = run([int(step) for step in options.steps.split(",")], options.peers, options.seconds)
    heads = ["who", "tunnels", "resident", "share (PSS)", "a tunnel", "each one more", "CPU", "CPU for 1,000"]
    publish("scale", machine(), table(heads, rows(costs)), bars(costs), costs, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
