"""Several controllers on one database, as members of a cluster; all on the lab's one machine for controllers."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from lab.controller import LabController
from lab.namespaces import Machine
from lab.postgres import Postgres
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
    """The members, with one login key; each has its files in a folder of its own."""

    def __init__(self, machine: Machine, database: Postgres, folder: Path, count: int) -> None:
        self.database = database
        self.members = [LabController(machine, folder / f"member-{number}") for number in range(count)]
        for member in self.members[1:]:
            shutil.copy(self.members[0].folder / "id_ed25519", member.folder / "id_ed25519")

    @property
    def authorized_keys(self) -> str:
        """The line of authorized_keys that agents need."""
        return self.members[0].authorized_keys

    def configure(self, sections: str, probe_interval: str = "2s") -> None:
        """Write the same configuration for all members."""
        for number, member in enumerate(self.members):
            head = _HEAD.format(name=f"member-{number}", state=self.database.url)
            member.configure(sections, probe_interval=probe_interval, head=head)

    def start(self, *members: LabController) -> None:
        """Start these members, or all; return when each has joined."""
        for member in members or self.members:
            member.start()
            until(partial(is_alive, member), "the member has joined", timeout=60)

    def kill(self) -> None:
        """Kill all that run."""
        for member in self.members:
            if member.answers():
                member.kill()

    def holder(self, agent: str) -> LabController:
        """Wait until an agent is up, and return the member that holds it."""
        member = next(self.running())
        name = member.wait_phase(agent, "up", timeout=30)["holder"]
        return self.members[int(str(name).removeprefix("member-"))]

    def running(self) -> Iterator[LabController]:
        """Yield the members that answer."""
        return (member for member in self.members if member.answers())


def is_alive(member: LabController) -> bool:
    """Return whether a member sees itself alive in the cluster."""
    cluster = member.client.status()["cluster"]
    return any(one["name"] == cluster["member"] and one["alive"] for one in cluster["members"])
