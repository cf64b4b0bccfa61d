"""Several controllers on one database, as members of a cluster: each on a machine of its own, or several on one."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from lab.controller import LabController
from lab.namespaces import Machine
from lab.processes import until

_HEAD: Final = """\
[controller]
name = "{name}"
state = "{state}"
socket = "{{folder}}/tunnelmgr.sock"
drain = "20s"

[ssh]
key = "{{folder}}/id_ed25519"
connect_timeout = "5s"
probe_interval = "{{probe_interval}}"
"""


class LabCluster:
    """The members, with one login key; each has its files in a folder of its own.

    There is one member for each of `machines`, of which several may be the same; `state` is the database's URL.
    """

    def __init__(self, machines: Sequence[Machine], state: str, folder: Path) -> None:
        self._state = state
        self.members = [LabController(machine, folder / f"member-{number}") for number, machine in enumerate(machines)]
        for member in self.members[1:]:
            shutil.copy(self.members[0].folder / "id_ed25519", member.folder / "id_ed25519")

    @property
    def authorized_keys(self) -> str:
        """The line of authorized_keys that agents need."""
        return self.members[0].authorized_keys

    def configure(self, sections: str, *members: LabController, probe_interval: str = "2s") -> None:
        """Write the same configuration for these members, or for all."""
        for number, member in enumerate(self.members):
            if not members or member in members:
                head = _HEAD.format(name=f"member-{number}", state=self._state)
                member.configure(sections, probe_interval=probe_interval, head=head)

    def start(self, *members: LabController) -> None:
        """Start these members, or all; return when each has joined."""
        for member in members or self.members:
            member.start()
            until(partial(is_alive, member), "the member has joined", timeout=60)

    def kill(self) -> None:
        """Kill all that run."""
        for member in self.running():
            member.kill()

    def holder(self, agent: str) -> LabController:
        """Wait until an agent is up, and return the member that holds it."""
        return self.member(str(self.running()[0].wait_phase(agent, "up", timeout=30)["holder"]))

    def wait_for_holder(self, agent: str, member: LabController) -> None:
        """Wait until an agent is held by this member, by its own word."""
        name = self.name(member)
        member.wait(agent, lambda shown: shown["holder"] == name, f"{name} holds {agent}")

    def member(self, name: str) -> LabController:
        """Return the member of this name."""
        return self.members[int(name.removeprefix("member-"))]

    def name(self, member: LabController) -> str:
        """Return a member's name."""
        return f"member-{self.members.index(member)}"

    def running(self) -> list[LabController]:
        """Return the members whose processes have not ended."""
        return [member for member in self.members if member.is_running]


def is_alive(member: LabController) -> bool:
    """Return whether a member sees itself alive in the cluster."""
    return cluster_name(member) in living(member)


def cluster_name(member: LabController) -> str:
    """Return a member's name, as it says itself."""
    return str(member.client.status()["cluster"]["member"])


def living(member: LabController) -> set[str]:
    """Return the names of the members that are alive, as one of them sees it."""
    return {str(one["name"]) for one in member.client.status()["cluster"]["members"] if one["alive"]}


def reaches_database(member: LabController) -> bool:
    """Return whether a member says that the database answers."""
    return bool(member.client.status()["cluster"]["database"]["ok"])
