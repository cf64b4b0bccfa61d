"""`explain-policy`: whether an agent may do something, and the rule that decides."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from tunnelmgr.cli.command import Command, Exit, command, one_of
from tunnelmgr.cli.options import AgentArgument, ConfigOption, JsonOption, SocketOption, client
from tunnelmgr.cli.output import print_json, stdout
from tunnelmgr.cli.render_text import cell

NO_RULE = "default"
"""The rule of a verdict that no grant and no deny decides: refused."""


class PolicyAction(StrEnum):
    """What an agent may want to do with a repository."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command(
        "explain-policy",
        cls=Command,
        rich_help_panel="Inspect",
        epilog="Example: `tunnelmgr explain-policy builder-1 push team/app`",
    )(explain_policy)


@command
def explain_policy(
    context: typer.Context,
    agent: AgentArgument,
    action: Annotated[
        PolicyAction, typer.Argument(metavar="ACTION", help="pull, push or delete", parser=one_of(PolicyAction))
    ],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="The repository, such as team/app")],
    forward: Annotated[
        str, typer.Option(metavar="NAME", help="Through this forward [default: the first one]", show_default=False)
    ] = "",
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether an agent may do something, and which rule decides. Exits with 1 if it may not."""
    verdict = client(context, config, socket).explain(agent, action.value, repository, forward)
    if as_json:
        print_json(verdict)
    else:
        word = Text("may", style="green") if verdict["allowed"] else Text("may not", style="red")
        reason = "no rule allows it" if verdict["rule"] == NO_RULE else verdict["rule"]
        line = Text.assemble(cell(verdict["agent"]), " ", word, cell(f" {action} {repository}: "), cell(reason, "bold"))
        stdout().print(line, cell(f"(group {verdict['group']}, forward {verdict['forward']})", "dim"))
    if not verdict["allowed"]:
        raise typer.Exit(Exit.FAILURE)
