"""The command line: one file for each family of commands; `render` turns the daemon's answers into tables."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tunnelmgr import __version__
from tunnelmgr.cli.command import Group

COMMANDS: Final = {
    "init": "setup",
    "check": "setup",
    "state": "state",
    "run": "run",
    "status": "status",
    "list": "status",
    "show": "status",
    "top": "top",
    "explain-policy": "explain",
    "audit": "audit",
    "retry": "operate",
    "release": "operate",
    "doctor": "doctor",
    "plan": "operate",
    "reload": "operate",
    "members": "cluster",
    "drain": "cluster",
    "rebalance": "cluster",
    "hook": "hook",
    "provision": "provision",
    "authority": "authority",
}
"""Every command in the order of the help, with the file of its family."""


class _AllCommands(Group):
    """Imports a family once one of its commands is needed: SSH, which few need, takes longer than most commands."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer has its own copy of click's types
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - as above
        """Return a command; for an unknown name all are imported, because the error suggests the nearest."""
        names = [cmd_name] if cmd_name in COMMANDS else COMMANDS
        for module in dict.fromkeys(COMMANDS[name] for name in names if name not in self.commands):
            family = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)
            import_module(f"{__name__}.{module}").register(family)
            self.commands.update(typer.main.get_group(family).commands)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="tunnelmgr",
    cls=_AllCommands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give short-lived build agents a loopback-only Docker registry, over SSH tunnels that the controller dials.",
    epilog="Exit status: 0 success · 1 a problem, which is named · 2 usage or configuration error · "
    "3 the daemon is not running · 4 the state was written by a newer version · "
    "5 `plan`: something would change.",
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
        typer.Option(
            "--config", "-c", metavar="FILE", help="Configuration file [default: /etc/tunnelmgr/tunnelmgr.toml]"
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    del version
    context.obj = config
