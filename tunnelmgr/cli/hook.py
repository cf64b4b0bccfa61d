"""`hook`: the script with which an agent waits for its registry."""

from typing import Annotated

import typer

from tunnelmgr import hooks
from tunnelmgr.cli.agent_setup import AgentSetup
from tunnelmgr.cli.command import Command, command, unknown_word
from tunnelmgr.cli.options import ConfigOption, JsonOption, chosen_file
from tunnelmgr.cli.output import print_json
from tunnelmgr.config import load


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command(
        cls=Command, rich_help_panel="Agents", epilog="Example: `tunnelmgr hook wait > /usr/local/bin/tunnelmgr-wait`"
    )(hook)


@command
def hook(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=" · ".join(f"{kind}: {text}" for kind, text in hooks.KINDS.items()))
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the script that an agent runs to wait for its registry, in the form that its launcher needs."""
    if kind not in hooks.KINDS:
        raise typer.BadParameter(unknown_word(kind, list(hooks.KINDS)), param_hint="KIND")
    line, user = None, "tunnel"
    if kind in hooks.NEED_KEY:
        setup = AgentSetup.of(load(chosen_file(context, config)))
        line, user = setup.authorized_keys, setup.user
    text = hooks.render(kind, authorized_keys_line=line, user=user)
    print_json({"kind": kind, "script": text}) if as_json else typer.echo(text, nl=False)
