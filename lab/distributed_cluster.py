"""A cluster on several machines, which can be lost and replaced, or cut off from the database or from agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lab.cluster import LabCluster

if TYPE_CHECKING:
    from pathlib import Path

    from lab.controller import LabController
    from lab.namespaces import Namespace
    from lab.network import Lab

FIRST_IP: Final = 2
"""The last number of the first member's address; the others have the next ones."""


class DistributedCluster(LabCluster):
    """Members on machines of their own, each with a registry; all registries serve the same images.

    `state` is the URL of a database that these machines reach.
    """

    def __init__(self, lab: Lab, state: str, folder: Path, count: int) -> None:
        self._lab = lab
        self._folder = folder
        self._machines = [self._new_machine(number) for number in range(count)]
        super().__init__(self._machines, state, folder)

    @property
    def addresses(self) -> dict[str, str]:
        """The members' names by their addresses."""
        return {machine.ip: f"member-{number}" for number, machine in enumerate(self._machines)}

    def lose(self, member: LabController) -> None:
        """Lose the machine of a member without a last packet."""
        self._lab.lose(self._machines[self.members.index(member)])
        member.kill()

    def replace(self, member: LabController) -> None:
        """Start a lost member again, with its files, on another machine at the same address."""
        number = self.members.index(member)
        self._machines[number] = member.machine = self._new_machine(number)
        self.start(member)

    def _new_machine(self, number: int) -> Namespace:
        machine = self._lab.machine(f"member-{number}", f"10.77.0.{FIRST_IP + number}")
        self._lab.registry(machine, self._folder / f"registry-{number}", storage=self._folder / "images")
        return machine
