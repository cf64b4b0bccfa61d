"""The command line: one file a family of commands; what is shown is made apart from what is asked."""

from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr import __version__
from tunnelmgr.cli import act, authority, look, policy, prepare, provision, serve

app = typer.Typer(
    name="tunnelmgr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Gives short-lived build agents a loopback-only Docker registry, over SSH tunnels that this side dials.",
    epilog="Exit status: 0 as it should be · 1 something is wrong, and named · 2 usage or configuration · "
    "3 the daemon is not running.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tunnelmgr {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Configuration [default: /etc/tunnelmgr/tunnelmgr.toml]"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    del version
    context.obj = config


for family in (serve, look, policy, act, prepare, provision, authority):
    family.register(app)
