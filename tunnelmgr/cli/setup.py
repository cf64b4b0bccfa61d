"""`init` and `check`: commands that prepare the controller."""

import asyncio
import os
import pwd
import shlex
import shutil
import socket
from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr import hooks
from tunnelmgr.cli import render
from tunnelmgr.cli.agent_setup import AgentSetup, AgentText
from tunnelmgr.cli.command import Command, Exit, command, one_of
from tunnelmgr.cli.config_template import configuration
from tunnelmgr.cli.options import ConfigOption, JsonOption, chosen_file
from tunnelmgr.cli.output import print_json, print_line, print_rendered, stderr
from tunnelmgr.config import DEFAULT_FILE, load
from tunnelmgr.errors import ControlError
from tunnelmgr.ssh.key_files import make_key

_DAEMON_USER = "tunnelmgr"  # of systemd/tunnelmgr.service


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Set up"
    app.command(
        cls=Command,
        rich_help_panel=panel,
        epilog="Example: `sudo tunnelmgr init`, or `tunnelmgr init -c ./try/tunnelmgr.toml`",
    )(init)
    app.command(cls=Command, rich_help_panel=panel, epilog="Example: `tunnelmgr check && systemctl start tunnelmgr`")(
        check
    )


@command
def init(
    context: typer.Context,
    wanted: Annotated[
        AgentText | None,
        typer.Option(
            "--print",
            metavar="TEXT",
            help="Print only this text for agents: authorized-keys, sshd or cloud-init",
            parser=one_of(AgentText),
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration and a key, and print the line that agents need. Existing files are kept as they are."""
    file = chosen_file(context, config).absolute()
    key = file.with_name("id_ed25519")
    made = _write_missing(file, key)
    # An existing configuration may differ from the one that this command writes.
    setup = AgentSetup.of(load(file))
    if as_json:
        cloud_init = setup.text(AgentText.CLOUD_INIT)
        facts = {"config": str(file), "key": str(key), "made": made, "public_key": setup.public_key}
        print_json({**facts, "authorized_keys": setup.authorized_keys, "cloud_init": cloud_init})
    elif wanted is not None:
        typer.echo(setup.text(wanted), nl=False)
    else:
        for path in (key, file):
            print_line(f"{'wrote' if str(path) in made else 'kept '}  {path}")
        given = config or context.obj
        typer.echo(_next_steps(setup, file, "" if given is None else f" -c {shlex.quote(str(given))}"))


def _write_missing(file: Path, key: Path) -> list[str]:
    """Write the configuration and the key if they do not exist; return the paths that were written."""
    made = []
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not key.exists():
            make_key(key, f"tunnelmgr@{socket.gethostname()}")
            if _is_for_the_unit(file) and os.geteuid() == 0:
                shutil.chown(key, _DAEMON_USER, _DAEMON_USER)
            made.append(str(key))
        if not file.exists():
            file.write_text(configuration(file, key), encoding="utf-8")
            made.append(str(file))
    except OSError as failed:
        raise ControlError(f"cannot write {failed.filename or file}: {failed.strerror}") from failed
    return made


def _is_for_the_unit(file: Path) -> bool:
    """Return whether the unit's daemon reads this configuration: the default one, on a machine that has its user."""
    try:
        pwd.getpwnam(_DAEMON_USER)
    except KeyError:
        return False
    return file == DEFAULT_FILE


def _next_steps(setup: AgentSetup, file: Path, option: str) -> str:
    """Return what to do next; `option` names the configuration if it is not the default one."""
    start = f"tunnelmgr check{option} && tunnelmgr run{option}"
    if _is_for_the_unit(file):
        start = f"runuser -u {_DAEMON_USER} -- tunnelmgr check && systemctl enable --now tunnelmgr"
    return f"""
Next:
1. Prepare each agent with the user-data that this command prints:

       tunnelmgr init{option} --print cloud-init

   or by hand: create the user {setup.user}, add these settings to its sshd,

       tunnelmgr init{option} --print sshd

   and put this line into {hooks.key_file(setup.user)}, owned by root:

{setup.authorized_keys}

2. Describe your agents as a [[source]] in {file}
3. Check and start the controller:

       {start}"""


@command
def check(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find problems before a start: keys, registry, cloud permissions, ports. Exits with 1 if there is one."""
    from tunnelmgr.cli.log_format import quiet_log  # noqa: PLC0415 - slow imports
    from tunnelmgr.daemon.checks import check as run_checks  # noqa: PLC0415 - as above

    quiet_log()

    loaded = load(chosen_file(context, config))
    with stderr().status("checking keys, registry and sources …"):
        findings = asyncio.run(run_checks(loaded))
    rows = [{"check": found.check, "result": found.result, "message": found.message} for found in findings]
    passed = all(found.result != "failed" for found in findings)
    if as_json:
        print_json({"ok": passed, "checks": rows})
    else:
        print_rendered(render.checks(rows))
    if not passed:
        raise typer.Exit(Exit.FAILURE)
