"""`retry`, `release` and `reload`: commands that ask the daemon to do something."""

from typing import Annotated

import typer

from tunnelmgr.cli.common import ConfigOption, JsonOption, SocketOption, client, command, print_json, say

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="An id, the beginning of one, or a name")]


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Act"
    app.command(rich_help_panel=panel, epilog="Example: `tunnelmgr retry builder-1`")(retry)
    app.command(
        rich_help_panel=panel, epilog='Example: `tunnelmgr release builder-1 --reason "reinstalled, ticket 4711"`'
    )(release)
    app.command(rich_help_panel=panel, epilog="Example: `tunnelmgr check && tunnelmgr reload`")(reload)


@command
def retry(
    context: typer.Context,
    agent: AgentArgument,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try an agent again now instead of at its next time."""
    answer = client(context, config, socket).retry(agent)
    print_json(answer) if as_json else say(f"{answer['agent']}: trying now")


@command
def release(
    context: typer.Context,
    agent: AgentArgument,
    reason: Annotated[str, typer.Option(help="Why it is safe; kept in the agent's history")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an agent's quarantine. What was believed of its key is forgotten, and evidence is asked for anew."""
    answer = client(context, config, socket).release(agent, reason)
    print_json(answer) if as_json else say(f"{answer['agent']}: released")


@command
def reload(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the daemon read its configuration again. A bad file changes nothing, and the daemon says why."""
    answer = client(context, config, socket).reload()
    if as_json:
        print_json(answer)
        return
    say("reloaded")
    for remark in answer["remarks"]:
        say(f"note: {remark}")
