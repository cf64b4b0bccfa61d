"""Slow network links: delay and loss between the controller and an agent, with addresses of their own."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab import processes
from lab.namespaces import Namespace
from lab.processes import LabError, until

SOURCE = Path(__file__).with_name("delay_link.c")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Link:
    """A link to an agent: the round-trip time in milliseconds, and the lost packets per million."""

    rtt_ms: int
    loss_ppm: int = 0

    def __str__(self) -> str:
        """Return its name in tables."""
        return f"{self.rtt_ms} ms" + (f", {self.loss_ppm / 10_000:g} % lost" if self.loss_ppm else "")


class Far(Protocol):
    """The far end of a link: an agent, or another machine in a namespace."""

    @property
    def netns(self) -> str:
        """The name of its network namespace."""
        ...

    @property
    def ip(self) -> str:
        """Its address on the lab's own network."""
        ...


def create_link(link: Link, controller: Namespace, agent: Far, folder: Path) -> str:
    """Create a link and return the far end's address on it; one without delay and loss is the lab's own network."""
    if not link.rtt_ms and not link.loss_ppm:
        return agent.ip
    number = next(_numbers)
    name, ours, theirs = f"link{number}", f"10.78.{number}.1", f"10.78.{number}.2"
    log = folder / f"{name}.log"
    # On a real link single packets are lost, so with losses there is no segmentation offload.
    argv = [compiled(folder), controller.name, name, agent.netns, name]
    argv += [str(link.rtt_ms * 500), str(link.loss_ppm), str(int(not link.loss_ppm))]
    controller.processes.start(argv, log=log)
    until(lambda: log.exists() and "up" in log.read_text(), f"the link of {link} is up")
    for netns, address in ((controller.name, ours), (agent.netns, theirs)):
        processes.run(["ip", "-n", netns, "addr", "add", f"{address}/30", "dev", name], check=True)
        processes.run(["ip", "-n", netns, "link", "set", name, "txqueuelen", "10000", "up"], check=True)
        use_cubic(netns)
    return theirs


def use_cubic(netns: str) -> None:
    """Make CUBIC, Linux's default, the congestion control of every connection there that does not request another.

    A namespace cannot set a default of its own, so its routes set it (`ip-route(8)`, congctl).
    """
    for table in ("main", "local"):
        shown = processes.run(["ip", "-n", netns, "-4", "route", "show", "table", table], check=True).stdout
        for route in shown.splitlines():
            if not route.startswith("broadcast") and "congctl" not in route:
                argv = ["ip", "-n", netns, "route", "change", *route.split(), "table", table, "congctl", "cubic"]
                processes.run(argv, check=True)


def compiled(folder: Path) -> str:
    """Return the program; compile it at the first use."""
    program = folder / "delay_link"
    if not program.exists():
        if not shutil.which("gcc"):
            raise LabError("the slow links need a compiler. Run: apt-get install gcc libc6-dev")
        argv = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(program), str(SOURCE)]
        processes.run(argv, check=True)
    return str(program)
