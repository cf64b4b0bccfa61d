"""Long lines: a delay and losses between the controller and an agent, with addresses of their own."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import processes
from lab.agents import LabAgent
from lab.namespaces import Namespace
from lab.processes import LabError, until

SOURCE = Path(__file__).with_name("delay_line.c")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Line:
    """A way to an agent: milliseconds there and back, and how many packets of a million are lost."""

    rtt_ms: int
    loss_ppm: int = 0

    def __str__(self) -> str:
        """Return what a table calls it."""
        return f"{self.rtt_ms} ms" + (f", {self.loss_ppm / 10_000:g} % lost" if self.loss_ppm else "")


def draw(line: Line, controller: Namespace, agent: LabAgent, folder: Path) -> str:
    """Lay a line; returns the agent's address at its end. One without a delay is the lab's own."""
    if not line.rtt_ms and not line.loss_ppm:
        return agent.ip
    number = next(_numbers)
    name, ours, theirs = f"line{number}", f"10.78.{number}.1", f"10.78.{number}.2"
    log = folder / f"{name}.log"
    # A loss is of a packet as it is on a real line, so large ones are cut before.
    words = [compiled(folder), controller.name, name, agent.netns, name]
    words += [str(line.rtt_ms * 500), str(line.loss_ppm), str(int(not line.loss_ppm))]
    controller.processes.start(words, log=log)
    until(lambda: log.exists() and "up" in log.read_text(), f"the line of {line} is up")
    for netns, address in ((controller.name, ours), (agent.netns, theirs)):
        processes.run(["ip", "-n", netns, "addr", "add", f"{address}/30", "dev", name], check=True)
        processes.run(["ip", "-n", netns, "link", "set", name, "txqueuelen", "10000", "up"], check=True)
        take_cubic(netns)
    return theirs


def take_cubic(netns: str) -> None:
    """Have every connection there use CUBIC unless it asks for another: Linux's default, whatever this machine's is.

    By its routes (`ip-route(8)`, congctl), since a namespace may not choose a default of its own.
    """
    for table in ("main", "local"):
        shown = processes.run(["ip", "-n", netns, "-4", "route", "show", "table", table], check=True).stdout
        for route in shown.splitlines():
            if not route.startswith("broadcast") and "congctl" not in route:
                words = ["ip", "-n", netns, "route", "change", *route.split(), "table", table, "congctl", "cubic"]
                processes.run(words, check=True)


def compiled(folder: Path) -> str:
    """Return the program, compiled at its first use."""
    program = folder / "delay_line"
    if not program.exists():
        if not shutil.which("gcc"):
            raise LabError("the long lines need a compiler: apt-get install gcc libc6-dev")
        words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(program), str(SOURCE)]
        processes.run(words, check=True)
    return str(program)
