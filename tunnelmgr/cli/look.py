"""`status`, `list` and `show`: commands that look."""

import json
import sys
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from tunnelmgr.cli import render
from tunnelmgr.cli.common import (
    ConfigOption,
    Exit,
    JsonOption,
    SocketOption,
    client,
    command,
    print_json,
    print_sheet,
    stdout,
)
from tunnelmgr.core.tunnel import Phase


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Look"
    app.command(rich_help_panel=panel, epilog="Example: `tunnelmgr status --json | jq .registry`")(status)
    app.command("list", rich_help_panel=panel, epilog="Example: `tunnelmgr list --phase quarantined --json`")(list_)
    app.command(rich_help_panel=panel, epilog="Example: `tunnelmgr show ec2:i-0abc`")(show)


@command
def status(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how the controller, its sources and the registry do. Exits with 1 when something is wrong."""
    ask = client(context, config, socket)
    facts = ask.status()
    agents = ask.agents()
    if as_json:
        print_json(facts)
    else:
        print_sheet(render.status(facts, agents))
    if render.problems(facts, agents):
        raise typer.Exit(Exit.WRONG)


@command
def list_(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    phase: Annotated[list[Phase] | None, typer.Option(help="Only agents in this phase (may be repeated)")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only agents of this group (may be repeated)")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also agents that left and are remembered")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the table live until Ctrl-C")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the agents, the newest first."""
    ask = client(context, config, socket)

    def chosen() -> list[dict[str, Any]]:
        return [
            agent
            for agent in ask.agents(departed=everything)
            if (not phase or agent["phase"] in phase) and (not group or agent["group"] in group)
        ]

    if watch:
        _watch(chosen, as_json=as_json)
    elif as_json:
        print_json(chosen())
    else:
        print_sheet(render.agents(chosen(), stdout().width))


def _watch(chosen: Any, *, as_json: bool) -> None:  # noqa: ANN401
    """Show each change until interrupted: a live table on a terminal, else one line of JSON or a table a change."""
    console = stdout()
    try:
        if not as_json and console.is_terminal:
            with Live(render.agents(chosen(), console.width), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(1)
                    live.update(render.agents(chosen(), console.width), refresh=True)
        before = None
        while True:
            now = chosen()
            if now != before:
                typer.echo(json.dumps(now)) if as_json else print_sheet(render.agents(now, console.width))
                sys.stdout.flush()
            before = now
            time.sleep(1)
    except KeyboardInterrupt:
        return


@command
def show(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="An id, the beginning of one, or a name")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell one agent's whole history: seen, evidence, dialled, bound, probed, lost, and why."""
    facts = client(context, config, socket).agent(agent)
    if as_json:
        print_json(facts)
    else:
        print_sheet(render.agent(facts))
