"""How the demo talks: one line a step, with a spinner while it lasts."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from lab.processes import LabError


@dataclass(slots=True)
class Narrator:
    """Says what happens, counts the steps, and times them."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    begun: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show one step, with a spinner while it lasts; what is said within stands below it."""
        said: list[str] = []
        with self.console.status(what):
            yield said.append
        taken = f"{time.monotonic() - self.begun:5.1f} s"
        self.console.print(f"[dim]{taken}[/]  [green]✔[/] {what}")
        for line in said:
            self.console.print(f"           {line}", style="dim", markup=False)


def ensure(holds: bool, what: str) -> None:
    """Raise LabError unless what the demo promises has happened."""
    if not holds:
        raise LabError(f"expected that {what}")


def stay(narrator: Narrator, file: Path, tries: Mapping[str, str]) -> None:
    """Leave everything running until Ctrl-C, and say what to try; `tries` are commands, by the machine they run on."""
    say = narrator.console.print
    say("It runs on, to play with. In another terminal:", style="bold")
    say(f"  tunnelmgr -c {file} list --watch", markup=False)
    for name, argv in tries.items():
        say(f"  {argv}   # on {name}", markup=False)
    say("Ctrl-C ends it and cleans up.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("")
