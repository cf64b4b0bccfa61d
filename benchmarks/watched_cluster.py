"""A cluster on several machines with a fleet whose listeners are watched, and clients on some of the agents."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import asyncssh
from content import PUSH
from fleet import FleetAgent, start_fleet, static_source
from listener_watch import WATCH_INTERVAL, WatchLog

from lab.agents import LabAgent
from lab.cluster import living, reaches_database
from lab.controller import LabController
from lab.distributed_cluster import DistributedCluster
from lab.listener_history import ListenerHistory
from lab.network import Lab
from lab.postgres import Postgres, remote_url
from lab.processes import LabError, until

ASKING, PULLING = 5, 3
"""Agents, of the first ones, on which a client asks who answers, and on which one pulls."""
BLOB, RATE = 2 * 1024 * 1024, 1024 * 1024
"""The size of the blob in bytes, and how many of them a client pulls per second."""
PATIENCE = 120.0
SEED_SECONDS = 86400.0
Json = dict[str, object]


class WatchedCluster:
    """The members, the database and the fleet. The last agent presents a wrong key; the one before it is pinned."""

    def __init__(self, lab: Lab, database: Postgres, folder: Path, agents: int, members: int) -> None:
        self.database = database
        self.started = 0.0
        self._folder = folder
        state = remote_url(folder / "roots.crt", database)
        self.cluster = DistributedCluster(lab, state, folder / "cluster", members)
        self.members = self.cluster.members
        argv = [sys.executable, "-c", PUSH, "127.0.0.1:5000", str(BLOB)]
        target = self.members[0].machine.run(argv, timeout=60, check=True).stdout.strip()
        self.host: LabAgent = lab.agent("fleet", "10.77.0.11", self.cluster.authorized_keys)
        clients = self._clients(target)
        self.fleet: list[FleetAgent] = start_fleet(self.host, agents, folder / "fleet", watched=True, clients=clients)
        self.watch = WatchLog(folder / "fleet" / "listeners.jsonl")
        self._configure()

    def start(self) -> None:
        """Start all members, store a seed, and wait until every agent is served."""
        self.cluster.start()
        key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        self.members[0].client.seed(" ".join(key.split()[:2]), SEED_SECONDS)
        self.settle()
        self.spread()
        self.settle()
        self.started = time.monotonic()

    def spread(self) -> None:
        """Have every member hold the agents that it would get if nobody held them."""
        until(lambda: not self.members[0].client.rebalance()["offered"], "all are spread", timeout=PATIENCE, pause=0.5)

    def settle(self) -> None:
        """Wait until all members that run agree, and their holder serves every agent but the one with a wrong key."""
        last = [""]

        def settled() -> bool:
            last[0] = self._unsettled()
            return not last[0]

        try:
            until(settled, "every agent is served by its holder", timeout=PATIENCE, pause=0.3)
        except LabError as late:
            raise LabError(f"{late}: {last[0]}") from late
        time.sleep(5 * WATCH_INTERVAL)

    def history(self) -> ListenerHistory:
        """Return who has listened where so far."""
        return self.watch.history()

    def held(self, member: LabController) -> int:
        """Return how many agents a member holds, by its own word."""
        cluster = member.client.status()["cluster"]
        return sum(int(one["agents"]) for one in cluster["members"] if one["name"] == cluster["member"])

    def evidence(self) -> dict[str, object]:
        """Return what must survive every fault: pins, quarantines and seeds, as an export of the state has them."""
        lines = map(json.loads, self.members[0].command("state", "export", timeout=60).stdout.splitlines())
        kept: dict[str, object] = {}
        for line in lines:
            if agent := line.get("agent"):
                mark = agent["quarantine"]
                kept[agent["id"]] = (agent["proved"], agent["possessed"], mark and (mark["code"], mark["message"]))
            elif seed := line.get("seed"):
                kept[f"seed {seed['id']}"] = seed
        return kept

    def quarantined(self) -> list[str]:
        """Return the names of the agents that are quarantined, as every member shows them."""
        shown = [
            sorted(agent["name"] for agent in member.client.agents() if agent["phase"] == "quarantined")
            for member in self.cluster.running()
        ]
        return shown[0] if all(names == shown[0] for names in shown) else [f"members differ: {shown}"]

    def answers(self) -> Iterator[tuple[int, Json]]:
        """Yield each answer that a client got to the question who answers, with its agent."""
        for number in range(ASKING):
            yield from ((number, one) for one in _lines(self._folder / f"ask-{number}"))

    def pulls(self) -> list[Json]:
        """Return every pull so far."""
        return [one for number in range(PULLING) for one in _lines(self._folder / f"pull-{number}")]

    def _clients(self, target: str) -> Iterator[tuple[int, Sequence[str]]]:
        script = [sys.executable, str(Path(__file__).with_name("fleet_client.py"))]
        for number in range(ASKING):
            yield number, [*script, "ask", str(self._folder / f"ask-{number}")]
        for number in range(PULLING):
            yield number, [*script, "pull", str(self._folder / f"pull-{number}"), target, str(RATE)]

    def _configure(self) -> None:
        *pinned, first_use, wrong = self.fleet
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        wrong = replace(wrong, host_key=" ".join(other.split()[:2]))
        sections = static_source([*pinned, wrong])
        sections += '[[source]]\nname = "first-use"\ntype = "static"\ntrust = ["tofu"]\n'
        sections += "\n".join(line for line in first_use.toml.splitlines() if not line.startswith("host_key")) + "\n"
        self.cluster.configure(sections, probe_interval="15s")

    def _unsettled(self) -> str:
        """Return what does not agree, "" if all does."""
        running = self.cluster.running()
        names = {self.cluster.name(member) for member in running}
        if not all(reaches_database(member) and living(member) == names for member in running):
            return "a member misses the database or another member"
        listening, numbers = self.history().listening(), {one.name: n for n, one in enumerate(self.fleet)}
        for agent in running[0].client.agents():
            number = numbers[agent["name"]]
            if number == len(self.fleet) - 1:
                continue
            served_by = {self.cluster.addresses[ip] for ip in listening.get(number, {}).values()}
            if agent["phase"] != "up" or served_by != {agent["holder"]}:
                return f"{agent['name']} is {agent['phase']}, held by {agent['holder']}, served by {served_by or None}"
        return ""


def _lines(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
