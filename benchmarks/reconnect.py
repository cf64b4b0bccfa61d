"""How long an agent goes without its registry after its connection is lost, beside autossh.

Each agent has a tunnel of ours or one of `ssh -R` under autossh; the same thing happens to all of them at once, again
and again. After a reset both sides know. After a silent loss the agent's side is gone and the controller's is not
told, as when a machine was restored or a NAT has forgotten; only signs of life tell, every 5 seconds with either. The
clock stops when a request through the agent's own port is answered. Needs root.

    python benchmarks/reconnect.py [--agents 4] [--resets 5] [--cuts 2] [--json FILE]
"""

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from figures import Bar, percentile, publish, table
from peers import have, machine, ssh_command

from tunnelmgr.demo.agents import LabAgent
from tunnelmgr.demo.controller import LabController
from tunnelmgr.demo.lab import Lab
from tunnelmgr.demo.processes import until

INTERVAL = 5
"""Seconds between two probes, and between two keepalives of ssh."""
PATIENCE = 60.0
STOOD = 11.0
"""Seconds for which the tunnels stand before: one that is lost sooner is retried with growing pauses."""
PORT = 5000


@dataclass(frozen=True)
class Outage:
    """One agent's outage, in seconds."""

    who: str
    what: str
    seconds: float


def answers(agent: LabAgent) -> bool:
    """Ask the registry through the agent's own port."""
    try:
        with agent.connect("127.0.0.1", PORT, timeout=1) as connected:
            connected.settimeout(1)
            connected.sendall(b"GET /v2/ HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: bench\r\n\r\n")
            return connected.recv(12) == b"HTTP/1.1 200"
    except (OSError, http.client.HTTPException):
        return False


def reset(agent: LabAgent) -> None:
    """Have both sides' connection reset."""
    agent.reset_connections()


def cut(agent: LabAgent) -> None:
    """Lose every packet of the connection that stands, and of no other; its end on the agent goes."""
    shown = agent.run(["ss", "-Htn", "state", "established", "sport = :22"], check=True).stdout
    rules = [f"add rule inet lab in tcp sport {line.split()[3].rpartition(':')[2]} drop" for line in shown.splitlines()]
    rules += [rule.replace("in tcp sport", "out tcp dport") for rule in rules]
    chains = [f"add chain inet lab {way} {{ type filter hook {way}put priority 0; }}" for way in ("in", "out")]
    agent.run(["nft", "; ".join(["add table inet lab", *chains, *rules])], check=True)
    agent.reset_connections()  # the packet that would tell of it is lost


def heal(agent: LabAgent) -> None:
    """Undo a cut."""
    agent.heal()


def outage(agent: LabAgent, happens: Callable[[LabAgent], None]) -> float:
    """Let it happen, and return how long requests fail."""
    happens(agent)
    began = time.monotonic()
    while not answers(agent):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"{agent.name} stays away")
        time.sleep(0.02)
    return time.monotonic() - began


def run(options: argparse.Namespace) -> list[Outage]:
    """Let it all happen."""
    outages: list[Outage] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        controller = LabController(lab.controller, Path(place) / "controller")
        registry = lab.registry(lab.controller, Path(place) / "registry")
        key = controller.folder / "id_ed25519"
        agents: dict[str, list[LabAgent]] = {}
        for row, who in enumerate(["ours", *(["autossh"] if have("autossh") else [])]):
            agents[who] = [
                lab.agent(
                    f"{who}{number}",
                    f"10.77.0.{20 + 20 * row + number}",
                    controller.authorized_keys,
                    sshd_options=["ClientAliveInterval 5", "ClientAliveCountMax 2"],
                )
                for number in range(options.agents)
            ]
        source = '[[source]]\nname = "lab"\ntype = "static"\ntrust = ["pinned"]\n' + "".join(
            f'[[source.agent]]\nname = "{one.name}"\naddress = "{one.ip}"\nhost_key = "{one.host_key}"\n'
            for one in agents["ours"]
        )
        controller.configure(source, probe_interval=f"{INTERVAL}s")
        controller.start()
        for one in agents.get("autossh", []):
            live = ["-o", f"ServerAliveInterval={INTERVAL}"]  # the first of two counts
            words = ssh_command("autossh", key, f"127.0.0.1:{PORT}:127.0.0.1:5000", f"tunnel@{one.ip}", *live)
            lab.controller.popen(words, env={"AUTOSSH_GATETIME": "0"})
        everyone = [(who, one) for who, some in agents.items() for one in some]
        with ThreadPoolExecutor(len(everyone)) as pool:
            for what, happens, count in (("reset", reset, options.resets), ("silent loss", cut, options.cuts)):
                for _ in range(count):
                    for _, one in everyone:
                        until(lambda one=one: answers(one), f"{one.name} is up", timeout=PATIENCE, pause=0.1)
                    time.sleep(STOOD)
                    found = list(pool.map(lambda pair, happens=happens: outage(pair[1], happens), everyone))
                    outages += [Outage(who, what, took) for (who, _), took in zip(everyone, found, strict=True)]
                    print(
                        f"  {what}: {[(who, round(took, 2)) for (who, _), took in zip(everyone, found, strict=True)]}",
                        file=sys.stderr,
                    )
                    for _, one in everyone:
                        heal(one)
        controller.kill()
        registry.stop()
    return outages


def rows(outages: Sequence[Outage]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for who, what in dict.fromkeys((one.who, one.what) for one in outages):
        mine = [one.seconds for one in outages if (one.who, one.what) == (who, what)]
        shown = [f"{value:.2f}" for value in (percentile(mine, 0.5), percentile(mine, 0.99), min(mine), max(mine))]
        lines.append([what, who, str(len(mine)), *shown])
    return sorted(lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=4, help="of each kind")
    parser.add_argument("--resets", type=int, default=5)
    parser.add_argument("--cuts", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    outages = run(options)
    own = {
        what: [one.seconds for one in outages if (one.who, one.what) == ("ours", what)]
        for what in ("reset", "silent loss")
    }
    bars = [
        Bar("p99 after a reset, s", percentile(own["reset"], 0.99), 1.5, least=False),
        Bar("the longest after a silent loss, in probe intervals", max(own["silent loss"]) / INTERVAL, 2, least=False),
    ]
    heads = ["what happens", "who", "times", "p50, s", "p99, s", "least", "most"]
    publish("reconnect", machine(), table(heads, rows(outages)), bars, outages, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
