"""What every command shares: its options, how it finds the daemon, and how it ends when something is wrong."""

import functools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from tunnelmgr.config import DEFAULT_FILE, DEFAULT_SOCKET, config_file
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.sanitize import escaped, printable
from tunnelmgr.errors import ConfigError, DaemonNotRunningError, TunnelmgrError

P = ParamSpec("P")
R = TypeVar("R")


UNBOUNDED = 4096
"""Columns of what is no terminal: `grep` and `less` want whole lines."""


class Exit(IntEnum):
    """The exit status of every command."""

    WELL = 0
    WRONG = 1
    USAGE = 2
    NOT_RUNNING = 3


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration [env: TUNNELMGR_CONFIG] [default: /etc/tunnelmgr/tunnelmgr.toml]",
        show_default=False,
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="TUNNELMGR_SOCKET",
        help="The daemon's socket [default: what the configuration says]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def stdout() -> Console:
    """Return the console for results: plain where it is no terminal, and then so wide that a row is one line."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(width=UNBOUNDED, soft_wrap=True, highlight=False)


def print_sheet(sheet: RenderableType) -> None:
    """Print what was rendered; where it is no terminal, without the blanks that fill its lines."""
    console = stdout()
    if console.is_terminal:
        console.print(sheet)
        return
    with console.capture() as lines:
        console.print(sheet)
    typer.echo("\n".join(line.rstrip() for line in lines.get().rstrip().splitlines()))


def stderr() -> Console:
    """Return the console for complaints and progress."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def chosen_file(context: typer.Context, option: Path | None) -> Path:
    """Return the configuration file: this command's option, else the one before it, else the environment's."""
    return config_file(option or context.obj)


def client(context: typer.Context, option: Path | None, socket: Path | None) -> ControlClient:
    """Return a client of the daemon that the options or the configuration name.

    Only `controller.socket` is read, so that a configuration that is wrong elsewhere, or unreadable to this user,
    hides no running daemon.
    """
    if socket is not None:
        return ControlClient(socket)
    file = chosen_file(context, option)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("controller", {})
    except (FileNotFoundError, PermissionError) as unreadable:
        if file != DEFAULT_FILE:
            raise ConfigError([f"cannot be read: {unreadable.strerror}"], file=str(file)) from unreadable
        table = {}
    except (OSError, ValueError) as bad:
        raise ConfigError([f"is not TOML: {bad}"], file=str(file)) from bad
    path = table.get("socket", DEFAULT_SOCKET) if isinstance(table, dict) else DEFAULT_SOCKET
    return ControlClient(Path(str(path)))


@contextmanager
def complaints() -> Iterator[None]:
    """Turn our errors into a sentence on stderr and the exit status that the contract gives them."""
    try:
        yield
    except ConfigError as bad:
        for problem in bad.problems:
            _complain(f"{bad.file}: {problem}" if bad.file else problem)
        raise typer.Exit(Exit.USAGE) from bad
    except DaemonNotRunningError as away:
        _complain(str(away))
        raise typer.Exit(Exit.NOT_RUNNING) from away
    except TunnelmgrError as wrong:
        _complain(str(wrong))
        raise typer.Exit(Exit.WRONG) from wrong
    except BrokenPipeError:
        # The reader has gone (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.WELL) from None


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command in `complaints`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with complaints():
            return function(*args, **kwargs)

    return wrapped


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print a value as JSON, indented for people who look."""
    typer.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def say(text: str) -> None:
    """Print a line for people."""
    typer.echo(printable(text))


def _complain(message: str) -> None:
    console = stderr()
    console.print("error: ", style="bold red", end="")
    console.print(Text(printable(message)))
