"""`doctor`: finds out step by step why an agent has no tunnel, and collects what a bug report needs."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.command import Command, Exit, command
from tunnelmgr.cli.options import ConfigOption, JsonOption, SocketOption, chosen_file, client
from tunnelmgr.cli.output import print_json, print_line, print_rendered, stderr
from tunnelmgr.cli.render_text import cell
from tunnelmgr.config import Config, load
from tunnelmgr.control.client import ControlClient

MARKS = {"ok": ("✔", "green"), "failed": ("✖", "red"), "note": ("!", "yellow")}
"""The mark and colour of each result."""


SECONDS_FROM = 10.0
"""From this time on, a step's time is shown in seconds."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    example = "Examples: `tunnelmgr doctor builder-1` · `tunnelmgr doctor --bundle report.tar.gz`"
    app.command(cls=Command, rich_help_panel="Operate", epilog=example)(doctor)


@command
def doctor(
    context: typer.Context,
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="An id, the beginning of one, or a name", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an archive for a bug report, without keys and passwords"),
    ] = None,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check each step of an agent's tunnel, and show the first that fails, why, and what to do.

    Asks the daemon, connects to the agent, compares its host key, logs in with the configured key, and asks through
    the tunnel. A tunnel that is up is not disturbed. Run it as root or as the daemon's user, who can read the key.
    Without an agent, it checks what every tunnel depends on. Exits with 1 if a step fails.
    """
    file = chosen_file(context, config)
    loaded, daemon = load(file), client(context, config, socket)
    taken = _examined(loaded, daemon, agent, quiet=as_json)
    passed = all(step["result"] != "failed" for step in taken)
    if as_json:
        print_json({"ok": passed, "steps": taken})
    if bundle is not None:
        from tunnelmgr.daemon.bundle import write_bundle  # noqa: PLC0415 - slow imports

        write_bundle(bundle, file, loaded, daemon, taken)
        if not as_json:
            print_line(f"wrote {bundle}; it has names and addresses of agents, so review it before you send it")
    if not passed:
        raise typer.Exit(Exit.FAILURE)


def _examined(config: Config, daemon: ControlClient, agent: str | None, *, quiet: bool) -> list[dict[str, Any]]:
    """Take all steps, and print each as it is taken unless `quiet`; return them as JSON has them."""
    from tunnelmgr.cli.log_format import quiet_log  # noqa: PLC0415 - slow imports
    from tunnelmgr.daemon.doctor import examine, examine_all  # noqa: PLC0415 - as above

    quiet_log()

    async def steps() -> list[dict[str, Any]]:
        taken = []
        with stderr().status("looking …"):
            async for step in examine_all(config, daemon) if agent is None else examine(config, daemon, agent):
                facts = asdict(step)
                taken.append({**facts, "took": round(step.took, 4)})
                if not quiet:
                    print_rendered(_line(facts))
        return taken

    return asyncio.run(steps())


def _line(step: dict[str, Any]) -> Table:
    """Return the line of one step: its mark, its name, the time it took, and what was found."""
    mark, style = MARKS[step["result"]]
    line = Table.grid(padding=(0, 1))
    line.add_column(width=1)
    line.add_column(width=24)
    line.add_column(width=7, justify="right", style="dim")
    line.add_column(overflow="fold")
    took = f"{step['took'] * 1000:.0f} ms" if step["took"] < SECONDS_FROM else f"{step['took']:.0f} s"
    line.add_row(Text(mark, style=style), cell(step["step"]), Text(took), cell(step["message"]))
    if step["cure"] and step["result"] != "ok":
        line.add_row("", "", "", Text.assemble(("→ ", style), cell(step["cure"].strip())))
    return line
