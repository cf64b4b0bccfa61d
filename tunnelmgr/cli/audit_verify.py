"""`audit verify`: whether the audit log's chain is whole, and where it is not."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tunnelmgr.cli.command import Exit, command, print_error
from tunnelmgr.cli.options import ConfigOption, JsonOption, chosen_file
from tunnelmgr.cli.output import print_json, print_line, stderr
from tunnelmgr.config import load
from tunnelmgr.errors import ConfigError, ControlError
from tunnelmgr.observability.audit_files import rotated_files
from tunnelmgr.observability.audit_report import Fault, FileReport, Verdict, judge
from tunnelmgr.observability.audit_seal import SealKey
from tunnelmgr.observability.audit_verify import verify_file

EXAMPLES = """Examples:

- `tunnelmgr audit verify` verifies the configured log with its rotated files

- `tunnelmgr audit verify --key audit_ed25519.pub audit.jsonl*` verifies copies, without a configuration

- `tunnelmgr audit verify --key audit_ed25519.pub --through 48213` also verifies that nothing is cut off before the last
  entry that a collector has
"""


FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE",
        help="Files of audit logs, also `.gz`, in any order [default: controller.audit and its rotated files]",
        show_default=False,
    ),
]
KeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PUBLIC",
        help="Verify the seals with this public key; repeat it after a change of keys [default: the public half "
        "beside controller.audit_key, if no FILE is given]",
        show_default=False,
    ),
]
ThroughOption = Annotated[
    int | None, typer.Option(metavar="SEQUENCE", min=1, help="Fail if the log ends before this number")
]


@command
def verify(
    context: typer.Context,
    files: FilesArgument = None,
    key: KeysOption = None,
    through: ThroughOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the audit log: find entries that were changed, removed, moved, inserted or cut off, and say where.

    Exits with 0 if the chain is whole, with 1 if not. Without a key, anyone who can write the files can compute the
    links again; with one, only the entries after the last seal can be changed without being noticed.
    """
    chosen, keys = list(files or []), list(key or [])
    if not chosen:
        chosen, own = _configured(chosen_file(context, config))
        keys = keys or _existing(own)
    loaded = [SealKey.load(file) for file in keys]
    verdict = judge(_reports(chosen, loaded), keyed=bool(loaded), through=through)
    if as_json:
        print_json(_as_json(verdict))
    else:
        _print(verdict, keyed=bool(loaded))
    if verdict.faults:
        raise typer.Exit(Exit.FAILURE)


def _configured(config: Path) -> tuple[list[Path], Path | None]:
    """Return the files of the configured log, and where the public key is if it is beside the private one."""
    settings = load(config).controller
    if settings.audit is None:
        problem = "controller.audit is not set, so there is no file to verify; name the files to verify"
        raise ConfigError([problem], file=str(config))
    try:
        files = [*([settings.audit] if settings.audit.exists() else []), *rotated_files(settings.audit)]
    except OSError as failed:
        raise ControlError(f"cannot read {settings.audit.parent}: {failed.strerror}") from failed
    if not files:
        raise ControlError(f"{settings.audit} does not exist")
    return files, settings.audit_key and settings.audit_key.with_name(settings.audit_key.name + ".pub")


def _existing(public: Path | None) -> list[Path]:
    """Return the public key if there is one."""
    try:
        return [public] if public and public.exists() else []
    except OSError as failed:
        raise ControlError(f"cannot read {public}: {failed.strerror}; give a copy of it with --key") from failed


def _size(file: Path) -> int | None:
    """Return the size of a file in bytes, None if it cannot be determined; the verification says why."""
    try:
        return file.stat().st_size
    except OSError:
        return None


def _reports(files: Sequence[Path], keys: Sequence[SealKey]) -> list[FileReport]:
    """Verify each file, with a bar of progress on a terminal."""
    reports = []
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for file in dict.fromkeys(files):
            task = bar.add_task(file.name, total=_size(file))

            def show(done: int, task: TaskID = task) -> None:
                bar.update(task, completed=done)

            reports.append(verify_file(file, keys, show))
            bar.remove_task(task)
    return reports


def _print(verdict: Verdict, *, keyed: bool) -> None:
    for report in verdict.reports:
        print_line(_summary(report))
    for note in verdict.notes:
        print_line(f"note: {note}")
    if not keyed:
        print_line("note: the seals were not verified, because no --key was given")
    for fault in verdict.faults:
        print_error(_text(fault))
    if not verdict.faults:
        print_line("ok: nothing was changed, removed, moved, inserted or cut off")


def _summary(report: FileReport) -> str:
    if not report.lines:
        return f"{report.file}: no entries"
    if report.begin is None or report.end is None:
        return f"{report.file}: {report.lines} lines without a chain"
    first = report.begin.sequence + 1
    owner = f" of {report.controller}" if report.controller else ""
    return f"{report.file}: {report.entries} entries{owner}, sequence {first} to {report.end.sequence}"


def _text(fault: Fault) -> str:
    place = f"{fault.file}:{fault.line}" if fault.line else str(fault.file)
    at = f" (sequence {fault.sequence})" if fault.sequence is not None else ""
    return f"{place}: {fault.kind}: {fault.detail}{at}"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "ok": not verdict.faults,
        "files": [
            {
                "file": str(report.file),
                "controller": report.controller,
                "lines": report.lines,
                "entries": report.entries,
                "lines_without_chain": report.unchained,
                "after": None if report.begin is None else report.begin.sequence,
                "last": None if report.end is None else report.end.sequence,
                "sealed": None if report.seal is None else report.seal.sequence,
            }
            for report in verdict.reports
        ],
        "faults": [asdict(fault) | {"file": str(fault.file), "kind": str(fault.kind)} for fault in verdict.faults],
        "notes": list(verdict.notes),
    }
