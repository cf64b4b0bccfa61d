"""Printing: results on stdout, as a table for people or as JSON for scripts, and progress on stderr."""

import json
import sys
from typing import Any

import typer
from rich.console import Console, RenderableType

from tunnelmgr.core.sanitize import escaped, printable

UNBOUNDED = 4096
"""Columns of an output that is not a terminal: `grep` and `less` need whole lines."""


def stdout() -> Console:
    """Return the console for results: plain if it is not a terminal, and then so wide that a row is one line."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(width=UNBOUNDED, soft_wrap=True, highlight=False)


def stderr() -> Console:
    """Return the console for errors and progress."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_rendered(sheet: RenderableType) -> None:
    """Print what was rendered; if stdout is not a terminal, without trailing blanks."""
    console = stdout()
    if console.is_terminal:
        console.print(sheet)
        return
    with console.capture() as lines:
        console.print(sheet)
    typer.echo("\n".join(line.rstrip() for line in lines.get().rstrip().splitlines()))


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print a value as JSON, indented for people who read it."""
    typer.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def print_line(text: str) -> None:
    """Print a line for people, with every control character replaced."""
    typer.echo(printable(text))
