"""`members`, `drain` and `rebalance`: several controllers on one database."""

from typing import Annotated

import typer

from tunnelmgr.cli import render_cluster
from tunnelmgr.cli.command import Command, Exit, command
from tunnelmgr.cli.options import ConfigOption, JsonOption, SocketOption, client
from tunnelmgr.cli.output import print_json, print_line, print_rendered
from tunnelmgr.cli.render_text import count
from tunnelmgr.control.problems import cluster_problems
from tunnelmgr.errors import ControlError

ALONE = "this controller has no cluster: its state is in a file (controller.state)"


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Cluster"
    app.command(
        cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr members --json | jq '.members[].name'`"
    )(members)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr drain --member registry-2`")(drain)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr rebalance`")(rebalance)


@command
def members(
    context: typer.Context, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Show the controllers of the cluster. Exits with 1 if there is a problem."""
    cluster = client(context, config, socket).status()["cluster"]
    if cluster is None:
        raise ControlError(ALONE)
    print_json(cluster) if as_json else print_rendered(render_cluster.members(cluster))
    problems = cluster_problems(cluster)
    if not as_json:
        for problem in problems:
            print_line(problem)
    if problems:
        raise typer.Exit(Exit.FAILURE)


@command
def drain(
    context: typer.Context,
    member: Annotated[str, typer.Option(metavar="NAME", help="The member to drain; by default the one asked")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let it take agents again")] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a member hand its agents over to the others, without a pause for the agents, and take no others."""
    daemon = client(context, config, socket)
    cluster = daemon.status()["cluster"]
    if cluster is None:
        raise ControlError(ALONE)
    answer = daemon.drain(member or cluster["member"], on=not undo)
    doing = "hands its agents over; see: tunnelmgr members" if answer["draining"] else "takes agents again"
    print_json(answer) if as_json else print_line(f"{answer['member']} {doing}")


@command
def rebalance(
    context: typer.Context, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Spread the agents over all members by their capacity and zone, without a pause for the agents."""
    answer = client(context, config, socket).rebalance()
    print_json(answer) if as_json else print_line(f"{count(answer['offered'], 'agent')} will move")
