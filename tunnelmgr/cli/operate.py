"""`retry`, `release`, `reload` and `plan`: commands that change what the daemon does, or say what would."""

from typing import Annotated

import typer

from tunnelmgr.cli.command import Command, Exit, command
from tunnelmgr.cli.options import AgentArgument, ConfigOption, JsonOption, SocketOption, chosen_file, client
from tunnelmgr.cli.output import print_json, print_line, print_rendered
from tunnelmgr.cli.render_plan import preview
from tunnelmgr.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Operate"
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr retry builder-1`")(retry)
    app.command(
        cls=Command,
        rich_help_panel=panel,
        epilog='Example: `tunnelmgr release builder-1 --reason "reinstalled, ticket 4711"`',
    )(release)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr plan --config new.toml`")(plan)
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
def plan(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a reload of a configuration would change, and change nothing.

    It is compared with what the daemon follows now: keys that differ, agents that move or leave, tunnels that are
    closed. Exits with 0 if nothing changes, with 5 if something does, and with 2 if the file has errors.
    """
    file = chosen_file(context, config)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError([f"cannot read the file: {unreadable}"], file=str(file)) from unreadable
    answer = client(context, config, socket).plan(text, str(file))
    print_json(answer) if as_json else print_rendered(preview(answer))
    if any(answer.values()):
        raise typer.Exit(Exit.CHANGES)


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
