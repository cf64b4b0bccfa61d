"""The cost of an idle tunnel: memory and CPU, for up to 2,000 tunnels in one process.

The agents have OpenSSH's own sshd and a probe every 15 s. Compared are, with the same agents, one `ssh -R` under
autossh per agent with a keepalive every 15 s, and asyncssh's own forwarder, all in one process; both are measured with
a number of agents that fits, and scaled to 1,000. More agents need a larger machine: each has two processes of sshd.
Needs root.

    python benchmarks/scale.py [--steps 100,1000,2000] [--peers 100] [--seconds 12] [--json FILE]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Bar, Spread, publish, table
from fleet import FleetAgent, count_listening, start_fleet, static_source
from tunnels import KEEPALIVE, cpu_of, forward_command, is_available, machine, memory_of, ssh_command

from lab.agents import LabAgent
from lab.controller import DEFAULTS_HEAD, LabController
from lab.namespaces import Machine
from lab.network import Lab
from lab.processes import Process, until

SETTLE = 5.0
"""Seconds from the last tunnel that came up to the measurement of the CPU."""
PARTS = 3
"""Parts of the measuring time; the CPU is the median of the parts."""
LARGE = 5_000
"""The tunnels of one process for which it must have CPU time."""
BATCH = 10
"""Tunnels that are started at once; sshd drops some if it is dialled by more."""


@dataclass(frozen=True)
class Cost:
    """The cost of a number of tunnels, in bytes and in shares of one core."""

    who: str
    tunnels: int
    resident: int
    share: int
    cpu: float


def cost(who: str, tunnels: int, groups: Sequence[int], seconds: float) -> Cost:
    """Measure the processes of some groups; the CPU is the median of three parts of the time."""
    time.sleep(SETTLE)
    shares = Spread.of(cpu_share(groups, seconds / PARTS) for _ in range(PARTS))
    memory = [memory_of(group) for group in groups]
    return Cost(who, tunnels, sum(one for one, _ in memory), sum(one for _, one in memory), shares.median)


def cpu_share(groups: Sequence[int], seconds: float) -> float:
    """Return the share of a core that some groups take."""
    before, began = sum(map(cpu_of, groups)), time.monotonic()
    time.sleep(seconds)
    return (sum(map(cpu_of, groups)) - before) / (time.monotonic() - began)


def ours(controller: LabController, fleet: Sequence[FleetAgent], steps: Sequence[int], seconds: float) -> list[Cost]:
    """Measure our own, with more agents at each step."""
    controller.configure(static_source([]), probe_interval=f"{KEEPALIVE}s", head=DEFAULTS_HEAD)
    controller.start()
    costs = [cost("ours", 0, [os.getpgid(controller.pid)], seconds / 3)]
    for count in steps:
        controller.configure(static_source(fleet[:count]), probe_interval=f"{KEEPALIVE}s", head=DEFAULTS_HEAD)
        controller.client.reload()
        until(lambda wanted=count: up(controller) == wanted, f"{count} are up", timeout=60 + count / 4, pause=0.5)
        costs.append(cost("ours", count, [os.getpgid(controller.pid)], seconds))
        print(f"  {costs[-1]}", file=sys.stderr)
    assert up(controller) == max(steps), "some tunnels were lost"  # noqa: S101
    controller.kill()
    return costs


def up(controller: LabController) -> int:
    """Return how many tunnels are up."""
    return int(controller.client.status()["up"])


def pairs(where: Machine, agent: LabAgent, key: Path, fleet: Sequence[FleetAgent], seconds: float) -> Cost:
    """Measure one `ssh -R` under autossh per agent."""
    started: list[Process] = []
    for first in range(0, len(fleet), BATCH):
        some = fleet[first : first + BATCH]
        for member in some:
            forward, place = "127.0.0.1:5000:127.0.0.1:5000", f"tunnel@{member.address}"
            argv = ssh_command("autossh", key, forward, place, "-p", str(member.port))
            started.append(where.popen(argv, env={"AUTOSSH_GATETIME": "0"}))
        until(lambda: count_listening(agent, len(fleet)) == len(started), "all of them listen", timeout=30, pause=0.5)
    found = cost("autossh and ssh", len(fleet), [one.pid for one in started], seconds)
    for one in started:
        one.end()
    until(lambda: not count_listening(agent, len(fleet)), "all of them are gone", timeout=60, pause=0.5)
    return found


def forwarder(where: Machine, agent: LabAgent, key: Path, fleet: Sequence[FleetAgent], seconds: float) -> Cost:
    """Measure asyncssh's own forwarder, with all agents in one process."""
    process = where.popen(forward_command(key, (f"{member.address}:{member.port}" for member in fleet)))
    until(lambda: count_listening(agent, len(fleet)) == len(fleet), "all of them listen", timeout=60, pause=0.5)
    found = cost("asyncssh", len(fleet), [process.pid], seconds)
    process.end()
    until(lambda: not count_listening(agent, len(fleet)), "all of them are gone", timeout=60, pause=0.5)
    return found


def run(steps: Sequence[int], peers: int, seconds: float) -> list[Cost]:
    """Measure all kinds, one after the other."""
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        folder = Path(place)
        controller = LabController(lab.controller, folder / "controller")
        registry = lab.registry(lab.controller, folder / "registry")
        agent = lab.agent("fleet", "10.77.0.11", controller.authorized_keys)
        fleet = start_fleet(agent, max(*steps, peers), folder / "fleet")
        key = controller.folder / "id_ed25519"
        costs = [forwarder(lab.controller, agent, key, fleet[:peers], seconds)]
        if is_available("autossh"):
            costs.append(pairs(lab.controller, agent, key, fleet[:peers], seconds))
        costs += ours(controller, fleet, steps, seconds)
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
    """Return the bars."""
    held = {(one.who, one.tunnels): one for one in costs}
    found = []
    most = max((one for one in costs if one.who == "ours"), key=lambda one: one.tunnels)
    peer = next((one for one in costs if one.who.startswith("autossh")), None)
    if peer is not None:
        for name in ("resident", "share"):
            theirs, own = getattr(peer, name) / peer.tunnels, getattr(most, name) / most.tunnels
            found.append(Bar(f"{name} memory per tunnel, relative to autossh and ssh", own / theirs, 0.1, least=False))
    if thousand := held.get(("ours", 1000)):
        found.append(Bar("CPU of 1,000 idle tunnels, of a core", thousand.cpu, 0.05, least=False))
    scaled = most.cpu * LARGE / most.tunnels
    found.append(
        Bar(f"CPU of {most.tunnels:,} idle tunnels, scaled to {LARGE:,}, of a core", scaled, 0.12, least=False)
    )
    further = (most.resident - held["ours", 0].resident) / most.tunnels
    found.append(Bar("resident KB per further tunnel", further / 1e3, 80, least=False))
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="100,1000,2000")
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=12.0, help="of measuring, at each step")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    costs = run([int(step) for step in options.steps.split(",")], options.peers, options.seconds)
    heads = ["who", "tunnels", "resident", "share (PSS)", "per tunnel", "per further tunnel", "CPU", "CPU for 1,000"]
    publish("scale", machine(), table(heads, rows(costs)), bars(costs), costs, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
