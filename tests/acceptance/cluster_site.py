"""What the tests of a cluster's faults share: members, database and agents, each on a machine of its own."""

import json
from collections.abc import Sequence
from pathlib import Path

from lab.agents import LabAgent
from lab.controller import LabController
from lab.distributed_cluster import DistributedCluster
from lab.network import Lab
from lab.processes import until
from tests.acceptance.conftest import GROUPS


class ClusterSite:
    """Two members on machines of their own, and the agents of one test."""

    def __init__(self, lab: Lab, state: str, folder: Path) -> None:
        self.cluster = DistributedCluster(lab, state, folder / "cluster", 2)
        self._lab = lab
        self._count = 0

    def boot(self, name: str) -> LabAgent:
        """Boot an agent that trusts the members."""
        self._count += 1
        return self._lab.agent(name, f"10.77.0.{20 + self._count}", self.cluster.authorized_keys)

    def list_agents(self, *agents: LabAgent, trust: str = "pinned") -> None:
        """Write the members' configuration: one static source of these agents."""
        text = f'{GROUPS}\n[[source]]\nname = "office"\ntype = "static"\ngroup = "builders"\n'
        text += f'trust = ["{trust}"]\npoll = "1s"\n'
        for agent in agents:
            text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\n'
            text += f'host_key = "{agent.host_key}"\n' if trust == "pinned" else ""
        self.cluster.configure(text, probe_interval="1s")

    def up(self, *agents: LabAgent, trust: str = "pinned") -> LabController:
        """Start both members, wait until the agents are up, and return the member that holds the first one."""
        self.list_agents(*agents, trust=trust)
        self.cluster.start()
        for agent in agents:
            self.cluster.members[0].wait_phase(agent.name, "up", timeout=30)
        return self.cluster.holder(agents[0].name)

    def other(self, member: LabController) -> LabController:
        """Return the other member."""
        return next(one for one in self.cluster.members if one is not member)

    def gather(self, agents: Sequence[LabAgent], holder: LabController) -> None:
        """Have one member hold all of these agents."""
        other, name = self.other(holder), self.cluster.name(self.other(holder))
        other.client.drain(name)
        for agent in agents:
            until(lambda agent=agent: self.who_answers(agent) == self.cluster.name(holder), "it has moved", timeout=30)
        other.client.drain(name, on=False)
        until(lambda: not self._is_draining(holder, name), "the drain has ended", timeout=20)

    def spread(self, agents: Sequence[LabAgent]) -> None:
        """Have each member hold one of two agents, whose names hash so."""
        self.cluster.members[0].client.rebalance()
        for agent, member in zip(agents, self.cluster.members, strict=True):
            self.wait_for_answer(agent, member, 30)
            self.cluster.wait_for_holder(agent.name, member)

    def who_answers(self, agent: LabAgent) -> str:
        """Return the name of the member that answers on the agent, "" if none does."""
        got = agent.run(["curl", "-fsS", "-m", "3", "http://localhost:5000/.well-known/tunnelmgr"], timeout=10)
        return str(json.loads(got.stdout)["controller"]) if got.returncode == 0 else ""

    def wait_for_answer(self, agent: LabAgent, member: LabController, seconds: float) -> None:
        """Wait until a client on the agent is answered by this member."""
        name = self.cluster.name(member)
        until(lambda: self.who_answers(agent) == name, f"{name} answers on {agent.name}", timeout=seconds)

    @staticmethod
    def _is_draining(seen_by: LabController, name: str) -> bool:
        return any(one["draining"] for one in seen_by.client.status()["cluster"]["members"] if one["name"] == name)


def logins(agent: LabAgent) -> int:
    """Return how many tunnels the agent's sshd has accepted."""
    return agent.log().count("Accepted publickey")
