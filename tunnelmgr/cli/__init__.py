"""The command line: one file for each family of commands; `render` turns the daemon's answers into tables."""

from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr import __version__
from tunnelmgr.cli import audit, authority, cluster, explain, hook, operate, provision, run, setup, state, status
from tunnelmgr.cli.command import Group
from tunnelmgr.config import DEFAULT_FILE

app = typer.Typer(
    name="tunnelmgr",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give short-lived build agents a loopback-only Docker registry, over SSH tunnels that the controller dials.",
    epilog="Exit status: 0 success · 1 a problem, which is named · 2 usage or configuration error · "
    "3 the daemon is not running · 4 the state was written by a newer version.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"tunnelmgr {__version__}")
        raise typer.Exit


@app.callback()
def _shared_options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help=f"Configuration file [default: {DEFAULT_FILE}]"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    del version
    context.obj = config


for family in (setup, run, status, explain, audit, operate, cluster, hook, provision, authority, state):
    family.register(app)
