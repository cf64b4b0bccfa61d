"""`run`: the daemon in the foreground."""

import asyncio
import ctypes
import os
import resource
import sys
from typing import Annotated

import typer

from tunnelmgr.cli.common import ConfigOption, chosen_file, command
from tunnelmgr.cli.logs import LogFormat, configure

_PR_SET_DUMPABLE = 4


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command(rich_help_panel="Daemon", epilog="Example: `tunnelmgr run -c ./tunnelmgr.toml --log-level debug`")(run)


@command
def run(
    context: typer.Context,
    config: ConfigOption = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Form of the log [default: text on a terminal, else json]")
    ] = None,
    log_level: Annotated[str, typer.Option(help="Least level: debug, info, warning or error")] = "info",
) -> None:
    """Run the controller in the foreground, until SIGTERM drains it. SIGHUP reads the configuration again."""
    if log_level.lower() not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(f"{log_level!r} is none of debug, info, warning, error", param_hint="--log-level")
    file = chosen_file(context, config)
    configure(log_format or (LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON), log_level)
    from tunnelmgr.daemon.daemon import run as run_daemon  # noqa: PLC0415 - spares every other command its imports
    from tunnelmgr.daemon.event_loop import loop_factory  # noqa: PLC0415 - as above

    os.umask(0o077)
    keep_out_of_core_files()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run_daemon(file))
    except asyncio.CancelledError:
        raise typer.Exit(1) from None


def keep_out_of_core_files() -> None:
    """Let no crash write our memory, and the keys in it, to disk, nor another process of this user look into it.

    prctl(2), PR_SET_DUMPABLE; and core(5), because a core_pattern that is a pipe disregards the limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
