"""`state export` and `state import`: the stored state as a file, for backups and moves."""

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr.cli.command import Command, Group, command
from tunnelmgr.cli.options import ConfigOption, JsonOption, chosen_file
from tunnelmgr.cli.output import print_json, print_line
from tunnelmgr.config import load
from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.errors import StoreError
from tunnelmgr.store.archive import read_archive, write_archive
from tunnelmgr.store.connect import Store, open_store, read_state

PRIVATE = 0o600
"""An archive says who may pull from where and holds a secret, as the state itself does."""


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    family = typer.Typer(
        cls=Group, no_args_is_help=True, help="Export and import the stored state: agents, quarantines, proofs, seeds."
    )
    family.command("export", cls=Command, epilog="Example: `tunnelmgr state export --keep 14 /var/backups/tunnelmgr`")(
        export_state
    )
    family.command("import", cls=Command, epilog="Example: `tunnelmgr state import /var/backups/tunnelmgr.jsonl`")(
        import_state
    )
    app.add_typer(family, name="state", rich_help_panel="Set up")


@command
def export_state(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to write: a file, or an existing folder [default: stdout]"),
    ] = None,
    config: ConfigOption = None,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=1, help="Of the archives in the folder, keep the newest N")
    ] = None,
) -> None:
    """Write the state as JSON Lines with a checksum, also while the daemon runs. Confidential."""
    folder = file if file and file.is_dir() else None
    if keep and not folder:
        raise typer.BadParameter("it needs an existing folder to write to", param_hint="--keep")
    settings = load(chosen_file(context, config)).controller
    memory = read_state(settings.state, settings.password_file)
    lines = write_archive(memory, time.time())
    if file is None:
        sys.stdout.writelines(lines)
        return
    if folder:
        file = folder / f"state-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
    _replace(file, lines)
    if folder and keep:
        _remove_older(folder, keep)
    print_line(f"{file}: {_counted(memory)} exported")


@command
def import_state(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that `state export` has written")],
    config: ConfigOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a state that is not empty")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read an archive into the state that the configuration names; the daemon must not run. All or nothing."""
    settings = load(chosen_file(context, config)).controller
    memory = _read(file)
    with closing(open_store(settings.state, f"state import on {settings.name}", settings.password_file)) as store:
        _write(store, memory, replace=replace)
    if as_json:
        print_json({"agents": len(memory.records), "seeds": len(memory.seeds)})
    else:
        print_line(f"{_counted(memory)} imported")


def _read(file: Path) -> StoredState:
    try:
        with file.open(encoding="utf-8") as lines:
            return read_archive(lines)
    except (OSError, UnicodeDecodeError) as unreadable:
        raise StoreError(f"{file}: cannot read the archive: {unreadable}") from unreadable
    except StoreError as damaged:
        raise StoreError(f"{file}: {damaged}") from damaged


def _write(store: Store, memory: StoredState, *, replace: bool) -> None:
    before = store.load()
    if (before.records or before.seeds) and not replace:
        raise StoreError(f"the state is not empty: it has {_counted(before)}; replace them with --replace")
    store.write(
        Changes(
            records=tuple(memory.records.values()),
            forgotten=tuple(id_ for id_ in before.records if id_ not in memory.records),
            seeds=tuple(memory.seeds.values()),
            spent=tuple(id_ for id_ in before.seeds if id_ not in memory.seeds),
            secret=memory.secret,
        )
    )


def _replace(file: Path, lines: Iterable[str]) -> None:
    """Write a temporary file and rename it, so that an interrupted export leaves the previous file intact."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.writelines(lines)
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).chmod(PRIVATE)
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as failed:
        raise StoreError(f"{file}: cannot write the archive: {failed.strerror}") from failed


def _remove_older(folder: Path, keep: int) -> None:
    """Remove all but the newest archives of a folder; their names sort by time."""
    try:
        for old in sorted(folder.glob("state-*Z.jsonl"))[:-keep]:
            old.unlink(missing_ok=True)
    except OSError as failed:
        raise StoreError(f"{failed.filename}: cannot remove the archive: {failed.strerror}") from failed


def _counted(memory: StoredState) -> str:
    agents, seeds = len(memory.records), len(memory.seeds)
    return f"{agents} agent{'' if agents == 1 else 's'} and {seeds} seed{'' if seeds == 1 else 's'}"
