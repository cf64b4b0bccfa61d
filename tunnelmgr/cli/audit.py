"""`audit`: the audit log, filtered; audit_verify.py has its command `verify`."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from tunnelmgr.cli import audit_verify
from tunnelmgr.cli.command import Command, Group, command
from tunnelmgr.cli.options import ConfigOption, JsonOption, chosen_file
from tunnelmgr.cli.output import stdout
from tunnelmgr.cli.render_text import cell
from tunnelmgr.config import load
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.errors import ConfigError, ControlError

AuditEntry = dict[str, Any]
_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.add_typer(family, name="audit", rich_help_panel="Inspect")
    family.command(cls=Command, epilog=audit_verify.EXAMPLES)(audit_verify.verify)


family = typer.Typer(
    cls=Group,
    invoke_without_command=True,
    epilog="Example: `tunnelmgr audit --refused --since 2h`, or `tunnelmgr audit --follow`",
)


@family.callback()
@command
def audit(
    context: typer.Context,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Only this agent: an id, or the beginning of one")
    ] = None,
    repository: Annotated[str | None, typer.Option(metavar="NAME", help="Only this repository")] = None,
    forward: Annotated[str | None, typer.Option(metavar="NAME", help="Only requests through this forward")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only refused requests")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only entries since then: 90s, 2h, 3d or 2026-01-31T12:00Z")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new entries as they come, until Ctrl-C")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the audit log: which agent pulled, pushed, deleted or was refused what, and the events of tunnels."""
    context.obj = config or context.obj
    if context.invoked_subcommand is not None:
        return
    file = load(chosen_file(context, config)).controller.audit
    if file is None:
        problem = "controller.audit is not set, so audit entries go to the daemon's log; set it to a file"
        raise ConfigError([problem], file=str(chosen_file(context, config)))
    exactly = {"repository": repository, "forward": forward}
    wanted = _filter(agent, exactly, refused=refused, since=_moment(since))
    try:
        for entry in _entries(file, follow=follow):
            if wanted(entry):
                typer.echo(json.dumps(entry)) if as_json else stdout().print(_line(entry))
                sys.stdout.flush()
    except BrokenPipeError:
        raise  # of stdout, not of the file
    except OSError as failed:
        raise ControlError(f"cannot read {file}: {failed.strerror}") from failed
    except KeyboardInterrupt:
        return


def _moment(since: str | None) -> str:
    """Return the time that `since` means in the form of the log, which sorts as text."""
    if since is None:
        return ""
    duration = _DURATION.fullmatch(since)
    try:
        if duration is not None:
            at = datetime.now(UTC) - timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        else:
            at = datetime.fromisoformat(since)
        return timestamp(at.timestamp())
    except (ValueError, OverflowError) as invalid:
        message = f"invalid time {since!r}; write a duration such as 2h, or a time such as 2026-01-31T12:00Z"
        raise typer.BadParameter(message, param_hint="--since") from invalid


def _filter(
    agent: str | None, exactly: Mapping[str, str | None], *, refused: bool, since: str
) -> Callable[[AuditEntry], bool]:
    def wanted(entry: AuditEntry) -> bool:
        id_ = str(entry.get("agent", ""))
        return (
            str(entry.get("time", "")) >= since
            and (agent is None or id_.startswith(agent) or id_.partition(":")[2].startswith(agent))
            and all(value is None or entry.get(name) == value for name, value in exactly.items())
            and (not refused or entry.get("verdict") == "refuse")
        )

    return wanted


def _entries(file: Path, *, follow: bool) -> Iterator[AuditEntry]:
    """Yield the entries of a file, and with `follow` new ones as they are added, also after a rotation."""
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


def _parsed(line: str) -> AuditEntry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # a damaged line; the gap in the sequence numbers shows it
    return entry if isinstance(entry, dict) else None


def _line(entry: AuditEntry) -> Text:
    style = {"refuse": "red", "allow": "green"}.get(str(entry.get("verdict")), "cyan")
    text = entry.get("detail") or " ".join(
        str(entry[name]) for name in ("action", "repository", "reference", "status", "rule") if entry.get(name)
    )
    return Text.assemble(
        cell(str(entry.get("time", ""))[:23].replace("T", " "), "dim"),
        "  ",
        cell(f"{entry.get('code', '?'):18}", style),
        "  ",
        cell(f"{entry.get('agent', '-')}  {text}"),
    )
