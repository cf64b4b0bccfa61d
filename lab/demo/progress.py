"""The demo's output: one line per step, with a spinner while the step runs."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from rich.console import Console

from lab.controller import LabController
from lab.processes import LabError

_INDENT = " " * 11  # as wide as the time and the mark of a step


@dataclass(slots=True)
class Progress:
    """Prints the steps with the seconds since the start."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show one step, with a spinner while it runs; yields a function that adds a line below the title."""
        lines: list[str] = []
        with self.console.status(title):
            yield lines.append
        self.console.print(f"[dim]{self._elapsed():5.1f} s[/]  [green]✔[/] {title}")
        for line in lines:
            self.console.print(f"{_INDENT}{line}", style="dim", markup=False)

    def show_command(self, controller: LabController, *arguments: str) -> None:
        """Run a command of tunnelmgr that writes to our own standard output, so that it finds the terminal."""
        self.console.print(f"\n$ tunnelmgr {' '.join(arguments)}", style="bold", markup=False)
        sys.stdout.flush()
        status = controller.show(*arguments, output=sys.stdout.fileno())
        ensure(status == 0, f"`tunnelmgr {' '.join(arguments)}` exits with status 0, not {status}")
        self.console.print()

    def note(self, text: str, style: str = "") -> None:
        """Print a paragraph between the steps."""
        self.console.print(text, style=style, markup=False)

    def succeed(self) -> None:
        """Print that the demo has succeeded."""
        self.console.print(f"\nEvery step succeeded, in {self._elapsed():.0f} s.", style="bold green")

    def fail(self, reason: str) -> None:
        """Print why the demo has failed."""
        self.console.print(f"{self._elapsed():5.1f} s  ✖ {reason}", style="bold red", markup=False)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started


def ensure(holds: bool, expectation: str) -> None:
    """Raise LabError unless the expectation holds."""
    if not holds:
        raise LabError(f"expected that {expectation}")


def refusal_in(client: CompletedProcess[str], refusal: str) -> str:
    """Return the whole message of this refusal that a client has printed."""
    printed = re.search(rf"tunnelmgr: {re.escape(refusal)}[^\"\n]*", client.stderr)
    if client.returncode == 0 or printed is None:
        raise LabError(f"expected that the client prints `tunnelmgr: {refusal}`, not: {client.stderr}")
    return printed[0]


def keep_running(progress: Progress, configuration: Path, commands: Mapping[str, str]) -> None:
    """Leave everything running until Ctrl-C, and print what to try: `commands` by the machine they run on."""
    progress.note("Everything keeps running. Try in another terminal:", style="bold")
    progress.note(f"  tunnelmgr -c {configuration} list --watch")
    for machine, command in commands.items():
        progress.note(f"  {command}   # on {machine}")
    progress.note("Press Ctrl-C to stop everything and clean up.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        progress.note("")
