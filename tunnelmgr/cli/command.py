"""What every command shares: its help, its exit status, and how its errors are printed."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from typing import Any, ParamSpec, TypeVar

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from tunnelmgr.cli.output import stderr
from tunnelmgr.core.sanitize import printable
from tunnelmgr.core.spelling import nearest
from tunnelmgr.errors import ConfigError, DaemonNotRunningError, SchemaError, TunnelmgrError
from tunnelmgr.observability import journal

P = ParamSpec("P")
R = TypeVar("R")
Word = TypeVar("Word", bound=StrEnum)


class Exit(IntEnum):
    """The exit status of every command."""

    SUCCESS = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    INCOMPATIBLE = 4
    CHANGES = 5


class Command(TyperCommand):
    """A command whose help shows no type beside a flag."""

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401 - typer has its own copy of click's types
        """Return the parameters that the help shows."""
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose help shows no type beside a flag."""

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401 - as above
        """Return the parameters that the help shows."""
        return _without_types(super().get_params(ctx))


def _without_types(params: Sequence[Any]) -> Sequence[Any]:
    """Return the same parameters; the help would show each flag as if it took a value, `--json <bool>`.

    It would also show a Python type beside each argument, `AGENT <str>`.
    """
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
        if param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None  # noqa: ARG005 - called by this name
    return params


def one_of(words: type[Word]) -> Callable[[str], Word]:
    """Return a parser for one of the words; its error names all of them and the nearest."""

    def parse(given: str) -> Word:
        found = next((word for word in words if word.casefold() == given.casefold()), None)
        if found is None:
            raise typer.BadParameter(unknown_word(given, list(words)))
        return found

    return parse


def unknown_word(given: str, known: Sequence[str]) -> str:
    """Return the error for a word that is not known, after `Invalid value for …:`."""
    near = nearest(given, known)
    suggestion = f" (did you mean {near}?)" if near else ""
    return f"{given!r}{suggestion}; use {', '.join(known[:-1])} or {known[-1]}"


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn our errors into a message on stderr and an exit status."""
    try:
        yield
    except ConfigError as bad:
        for problem in bad.problems:
            print_error(f"{bad.file}: {problem}" if bad.file else problem)
        raise typer.Exit(Exit.USAGE) from bad
    except DaemonNotRunningError as not_running:
        print_error(str(not_running))
        raise typer.Exit(Exit.NOT_RUNNING) from not_running
    except SchemaError as incompatible:
        print_error(str(incompatible))
        raise typer.Exit(Exit.INCOMPATIBLE) from incompatible
    except TunnelmgrError as failed:
        print_error(str(failed))
        raise typer.Exit(Exit.FAILURE) from failed
    except BrokenPipeError:
        # The reader has gone (`| head`), which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.SUCCESS) from None


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command in `reported_errors`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with reported_errors():
            return function(*args, **kwargs)

    return wrapped


def print_error(message: str) -> None:
    """Print an error on stderr."""
    _print_marked("error", "bold red", message)


def print_warning(message: str) -> None:
    """Print a warning on stderr."""
    _print_marked("warning", "bold yellow", message)


def _print_marked(level: str, style: str, message: str) -> None:
    console = stderr()
    if journal.is_journal(sys.stderr):
        console.print(f"<{journal.PRIORITIES[level]}>", end="")
    console.print(f"{level}: ", style=style, end="")
    console.print(Text(printable(message)))
