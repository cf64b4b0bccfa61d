"""`status`, `list` and `show`: the state of the controller and of its agents."""

import json
import sys
import time
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.live import Live

from tunnelmgr.cli import render
from tunnelmgr.cli.command import Command, Exit, command, one_of
from tunnelmgr.cli.options import AgentArgument, ConfigOption, JsonOption, SocketOption, client
from tunnelmgr.cli.output import print_json, print_rendered, stdout
from tunnelmgr.cli.wait import Condition, wait_for
from tunnelmgr.config.values import Duration
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.tunnel import Phase

_PHASES = ", ".join(Phase)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Inspect"
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr status --json | jq .registry`")(status)
    app.command(
        "list", cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr list --phase quarantined --json`"
    )(list_)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr show ec2:i-0abc`")(show)


@command
def status(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    wait: Annotated[
        Condition | None,
        typer.Option(
            "--wait",
            metavar="ALIVE|READY",
            help="Wait until the daemon answers, or until it is ready for agents; then exit with 0",
            parser=one_of(Condition),
        ),
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="With --wait: give up after this time")] = "60s",
    as_json: JsonOption = False,
) -> None:
    """Show controller, source and registry health. Exits with 1 if there is a problem."""
    daemon = client(context, config, socket)
    if wait is not None:
        _wait(wait, daemon, _seconds(timeout, "--timeout"), as_json=as_json)
        return
    facts = daemon.status()
    agents = daemon.agents(phases=[phase for phase in Phase if phase is not Phase.UP])
    if as_json:
        print_json(facts)
    else:
        print_rendered(render.status(facts, agents))
    if render.problems(facts, agents):
        raise typer.Exit(Exit.FAILURE)


def _seconds(text: str, option: str) -> float:
    """Return the seconds of a duration such as `60s`."""
    try:
        return TypeAdapter(Duration).validate_python(text)
    except ValueError as invalid:
        raise typer.BadParameter('write a duration such as "15s", "2m" or "500ms"', param_hint=option) from invalid


def _wait(condition: Condition, daemon: ControlClient, seconds: float, *, as_json: bool) -> None:
    checks = wait_for(condition, daemon, seconds)
    holds = all(check["ok"] for check in checks)
    if as_json:
        print_json({"condition": condition, "holds": holds, "checks": checks})
    else:
        print_rendered(render.checks([{**check, "result": "ok" if check["ok"] else "failed"} for check in checks]))
    if not holds:
        raise typer.Exit(Exit.FAILURE)


@command
def list_(
    context: typer.Context,
    config: ConfigOption = None,
    socket: SocketOption = None,
    phase: Annotated[
        list[Phase] | None,
        typer.Option(metavar="PHASE", help=f"Only agents in this phase: {_PHASES} (repeatable)", parser=one_of(Phase)),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Only agents of this group (repeatable)")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also agents that are gone but remembered")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update the table every second until Ctrl-C")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the agents, newest first."""
    daemon = client(context, config, socket)

    def chosen() -> list[dict[str, Any]]:
        return daemon.agents(departed=everything, phases=phase or (), groups=group or ())

    if watch:
        _watch(chosen, as_json=as_json)
    elif as_json:
        print_json(chosen())
    else:
        print_rendered(render.agents(chosen(), stdout().width))


def _watch(chosen: Any, *, as_json: bool) -> None:  # noqa: ANN401
    """Show the agents until interrupted: a live table on a terminal, else JSON or a table after each change."""
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
                typer.echo(json.dumps(now)) if as_json else print_rendered(render.agents(now, console.width))
                sys.stdout.flush()
            before = now
            time.sleep(1)
    except KeyboardInterrupt:
        return


@command
def show(
    context: typer.Context,
    agent: AgentArgument,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one agent with its history: discovery, evidence, connections, failures and their reasons."""
    facts = client(context, config, socket).agent(agent)
    if as_json:
        print_json(facts)
    else:
        print_rendered(render.agent(facts))
