"""`run`: the daemon in the foreground."""

import asyncio
import ctypes
import gc
import os
import resource
import sys
from typing import Annotated

import typer

from tunnelmgr.cli.command import Command, Exit, command, one_of
from tunnelmgr.cli.log_format import LogFormat, LogLevel, configure
from tunnelmgr.cli.options import ConfigOption, chosen_file

_PR_SET_DUMPABLE = 4


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command(
        cls=Command,
        rich_help_panel="Daemon",
        epilog="Example: `tunnelmgr run -c ./tunnelmgr.toml --log-level debug`",
    )(run)


@command
def run(
    context: typer.Context,
    config: ConfigOption = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            metavar="FORMAT",
            help="Log format: text or json [default: text on a terminal, else json]",
            parser=one_of(LogFormat),
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(metavar="LEVEL", help="Lowest level: debug, info, warning or error", parser=one_of(LogLevel)),
    ] = LogLevel.INFO,
) -> None:
    """Run the controller in the foreground. SIGTERM drains and stops it; SIGHUP reloads the configuration."""
    file = chosen_file(context, config)
    configure(log_format or (LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON), log_level)
    gc.disable()  # until the daemon has started: what starting creates is not garbage
    from tunnelmgr.daemon.daemon import run as run_daemon  # noqa: PLC0415 - slow imports that no other command needs
    from tunnelmgr.daemon.event_loop import loop_factory  # noqa: PLC0415 - as above

    os.umask(0o077)
    keep_out_of_core_files()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run_daemon(file))
    except asyncio.CancelledError:
        raise typer.Exit(Exit.FAILURE) from None
    finally:
        # The interpreter's end searches all objects for cycles, which would make a restart a fifth of a second longer.
        gc.freeze()


def keep_out_of_core_files() -> None:
    """Keep our memory, which holds keys, out of core files, and out of reach of this user's other processes.

    prctl(2), PR_SET_DUMPABLE; and core(5), because a core_pattern that is a pipe ignores the limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
