"""`init`, `check` and `hook`: commands for the time before agents come."""

import asyncio
import socket
from typing import Annotated

import typer

from tunnelmgr import hooks
from tunnelmgr.cli import render
from tunnelmgr.cli.common import (
    ConfigOption,
    Exit,
    JsonOption,
    chosen_file,
    command,
    print_json,
    print_sheet,
    stderr,
)
from tunnelmgr.cli.template import configuration
from tunnelmgr.config import load
from tunnelmgr.errors import ControlError
from tunnelmgr.ssh.login import make_key, public_lines


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Start here"
    app.command(
        rich_help_panel=panel, epilog="Example: `sudo tunnelmgr init`, or `tunnelmgr init -c ./try/tunnelmgr.toml`"
    )(init)
    app.command(rich_help_panel=panel, epilog="Example: `tunnelmgr check && systemctl start tunnelmgr`")(check)
    app.command(rich_help_panel="Agents", epilog="Example: `tunnelmgr hook wait > /usr/local/bin/tunnelmgr-wait`")(hook)


@command
def init(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented configuration and a key, and print what the agents need. Nothing that exists is replaced."""
    file = chosen_file(context, config).absolute()
    key = file.with_name("id_ed25519")
    made = []
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not key.exists():
            make_key(key, f"tunnelmgr@{socket.gethostname()}")
            made.append(str(key))
        if not file.exists():
            file.write_text(configuration(file, key), encoding="utf-8")
            made.append(str(file))
    except OSError as failed:
        raise ControlError(f"{failed.filename or file}: {failed.strerror}") from failed
    # What the file says, which may be an older one and differ from the one above.
    loaded = load(file)
    listen = [endpoint for forward in loaded.forwards() for endpoint in forward.listen]
    public = public_lines(loaded.ssh)[0]
    line = hooks.authorized_keys_line(listen, public)
    snippet = hooks.cloud_init(line, loaded.ssh.user)
    if as_json:
        facts = {"config": str(file), "key": str(key), "made": made, "public_key": public}
        print_json({**facts, "authorized_keys": line, "cloud_init": snippet})
        return
    for path in (key, file):
        typer.echo(f"{'wrote' if str(path) in made else 'kept '}  {path}")
    typer.echo(f"\n# On each agent, in {hooks.key_file(loaded.ssh.user)}, which is root's, one line:\n")
    typer.echo(line)
    typer.echo("\n# and in /etc/ssh/sshd_config.d/10-tunnelmgr.conf:\n")
    typer.echo(hooks.sshd_settings(loaded.ssh.user))
    typer.echo("\n# Or as user-data, which makes the user too:\n")
    typer.echo(snippet)
    typer.echo(f"# Next: describe your agents in {file}, then `tunnelmgr check` and `tunnelmgr run`.")


@command
def check(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what would go wrong, before the daemon starts: keys, registry, cloud permissions, ports."""
    from tunnelmgr.daemon.checks import check as look  # noqa: PLC0415 - spares every other command its imports

    loaded = load(chosen_file(context, config))
    with stderr().status("looking at keys, registry and sources …"):
        findings = asyncio.run(look(loaded))
    rows = [{"check": found.check, "result": found.result, "message": found.message} for found in findings]
    well = all(found.result != "failed" for found in findings)
    if as_json:
        print_json({"ok": well, "checks": rows})
    else:
        print_sheet(render.checks(rows))
    if not well:
        raise typer.Exit(Exit.WRONG)


@command
def hook(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=" · ".join(f"{k}: {what}" for k, what in hooks.KINDS.items()))
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the script that an agent runs to wait for its registry, in the form that a launcher needs."""
    if kind not in hooks.KINDS:
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(hooks.KINDS)}", param_hint="KIND")
    line, user = None, "tunnel"
    if kind in hooks.NEED_KEY:
        loaded = load(chosen_file(context, config))
        listen = [endpoint for forward in loaded.forwards() for endpoint in forward.listen]
        line, user = hooks.authorized_keys_line(listen, public_lines(loaded.ssh)[0]), loaded.ssh.user
    text = hooks.render(kind, authorized_keys_line=line, user=user)
    print_json({"kind": kind, "script": text}) if as_json else typer.echo(text, nl=False)
