"""`explain-policy` and `audit`: what an agent may do, and what was done."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from tunnelmgr.cli.common import (
    ConfigOption,
    Exit,
    JsonOption,
    SocketOption,
    chosen_file,
    client,
    command,
    print_json,
    stdout,
)
from tunnelmgr.cli.render import cell
from tunnelmgr.config import load
from tunnelmgr.errors import ConfigError, ControlError

Entry = dict[str, Any]
_SPAN = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Verb(StrEnum):
    """What an agent may want to do with a repository."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    panel = "Look"
    app.command(
        "explain-policy", rich_help_panel=panel, epilog="Example: `tunnelmgr explain-policy ci-1 push team/app`"
    )(explain_policy)
    app.command(
        rich_help_panel=panel, epilog="Example: `tunnelmgr audit --refused --since 2h`, or `tunnelmgr audit --follow`"
    )(audit)


@command
def explain_policy(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="An id, the beginning of one, or a name")],
    verb: Annotated[Verb, typer.Argument(metavar="ACTION", help="pull, push or delete")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Such as team/app")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether an agent may do something, and which rule decides. Exits with 1 where it may not."""
    verdict = client(context, config, socket).explain(agent, verb.value, repository)
    if as_json:
        print_json(verdict)
    else:
        word = Text("may", style="green") if verdict["allowed"] else Text("may not", style="red")
        rule = cell(verdict["rule"], "bold")
        line = Text.assemble(cell(verdict["agent"]), " ", word, cell(f" {verb} {repository}: "), rule)
        stdout().print(line, cell(f"(group {verdict['group']})", "dim"))
    if not verdict["allowed"]:
        raise typer.Exit(Exit.WRONG)


@command
def audit(
    context: typer.Context,
    agent: Annotated[str | None, typer.Option(help="Only this agent: an id, or the beginning of one")] = None,
    repository: Annotated[str | None, typer.Option(help="Only this repository")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused")] = False,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="Such as 90s, 2h, 3d or 2026-01-31T12:00Z")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the audit log: who pulled, pushed, deleted or was refused what, and what became of tunnels."""
    file = load(chosen_file(context, config)).controller.audit
    if file is None:
        raise ConfigError(["controller.audit: names no file; the audit goes to the daemon's log"])
    wanted = _filter(agent, repository, refused=refused, since=_moment(since))
    try:
        for entry in _entries(file, follow=follow):
            if wanted(entry):
                typer.echo(json.dumps(entry)) if as_json else stdout().print(_line(entry))
                sys.stdout.flush()
    except OSError as failed:
        raise ControlError(f"{file}: {failed.strerror}") from failed
    except KeyboardInterrupt:
        return


def _moment(since: str | None) -> str:
    """Return the time that `since` means in the log's own form, which sorts as text."""
    if since is None:
        return ""
    span = _SPAN.fullmatch(since)
    if span is not None:
        at = datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
    else:
        try:
            at = datetime.fromisoformat(since)
        except ValueError as odd:
            message = f"{since!r} is neither a span such as 2h nor a time such as 2026-01-31T12:00Z"
            raise typer.BadParameter(message, param_hint="--since") from odd
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _filter(agent: str | None, repository: str | None, *, refused: bool, since: str) -> Callable[[Entry], bool]:
    def wanted(entry: Entry) -> bool:
        id_ = str(entry.get("agent", ""))
        return (
            str(entry.get("time", "")) >= since
            and (agent is None or id_.startswith(agent) or id_.partition(":")[2].startswith(agent))
            and (repository is None or entry.get("repository") == repository)
            and (not refused or entry.get("verdict") == "refuse")
        )

    return wanted


def _entries(file: Path, *, follow: bool) -> Iterator[Entry]:
    """Yield the entries of a file, and with `follow` those that are added, also after it was rotated."""
    while True:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in _lines(lines, file, follow=follow):
                entry = _parsed(line)
                if entry is not None:
                    yield entry
        if not follow:
            return


def _lines(lines: TextIO, file: Path, *, follow: bool) -> Iterator[str]:
    """Yield whole lines until the end, or with `follow` until another file has taken this one's place."""
    rest = ""
    while True:
        rest += lines.readline()
        if rest.endswith("\n"):
            yield rest
            rest = ""
        elif not follow or (file.exists() and file.stat().st_ino != os.fstat(lines.fileno()).st_ino):
            return
        else:
            time.sleep(0.2)


def _parsed(line: str) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # a line that something else has spoilt; its sequence number is missing, which shows
    return entry if isinstance(entry, dict) else None


def _line(entry: Entry) -> Text:
    style = {"refuse": "red", "allow": "green"}.get(str(entry.get("verdict")), "cyan")
    what = entry.get("detail") or " ".join(
        str(entry[name]) for name in ("action", "repository", "reference", "status", "rule") if entry.get(name)
    )
    return Text.assemble(
        cell(str(entry.get("time", ""))[:23].replace("T", " "), "dim"),
        "  ",
        cell(f"{entry.get('code', '?'):18}", style),
        "  ",
        cell(f"{entry.get('agent', '-')}  {what}"),
    )
