"""`retry`, `release` and `reload`: commands that change what the daemon does."""

from typing import Annotated

import typer

from tunnelmgr.cli.command import Command, command
from tunnelmgr.cli.options import AgentArgument, ConfigOption, JsonOption, SocketOption, client
from tunnelmgr.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Operate"
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr retry builder-1`")(retry)
    app.command(
        cls=Command,
        rich_help_panel=panel,
        epilog='Example: `tunnelmgr release builder-1 --reason "reinstalled, ticket 4711"`',
    )(release)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr check && tunnelmgr reload`")(reload)


@command
def retry(
    context: typer.Context,
    agent: AgentArgument,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Connect to an agent now instead of at its next scheduled attempt."""
    answer = client(context, config, socket).retry(agent)
    print_json(answer) if as_json else print_line(f"{answer['agent']}: connecting now")


@command
def release(
    context: typer.Context,
    agent: AgentArgument,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why it is safe; recorded in the agent's history and the audit log")
    ],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release an agent from quarantine. Its remembered host keys are dropped, and evidence is requested again."""
    answer = client(context, config, socket).release(agent, reason)
    print_json(answer) if as_json else print_line(f"{answer['agent']}: released")


@command
def reload(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the daemon read its configuration again. A file with errors changes nothing, and the errors are printed."""
    answer = client(context, config, socket).reload()
    if as_json:
        print_json(answer)
        return
    print_line("reloaded")
    for remark in answer["remarks"]:
        print_line(f"note: {remark}")
