"""Reading the file: one frozen `Config`, or every problem at once, each with its place."""

import os
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunnelmgr.config.model import DEFAULT_FILE, Config, SshConfig
from tunnelmgr.config.problems import problems_of, unknown
from tunnelmgr.config.sources import SourceConfig, plugins, source_type
from tunnelmgr.core.spelling import nearest
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def config_file(option: Path | None) -> Path:
    """Return the file to read: the option, else `TUNNELMGR_CONFIG`, else the default file."""
    return option or Path(os.environ.get("TUNNELMGR_CONFIG") or DEFAULT_FILE)


def load(file: Path, examine: Callable[[SshConfig], object] = lambda _: None, text: str | None = None) -> Config:
    """Read and check the file, or `text` in its place.

    `examine` checks `[ssh]` further if that table is valid, even if others are not, and may raise ConfigError.
    Raises ConfigError with every problem found, each with its place, such as `source[1].poll: …`.
    """
    raw = _parse(file, text)
    problems: list[str] = []
    tables = enumerate(_tables(raw, "source", problems))
    sources = {at: _source(entry, f"source[{at}]", problems) for at, entry in tables}
    found = {at: source for at, source in sources.items() if source is not None}
    ssh = _validated(SshConfig, raw.get("ssh", {}), "ssh", problems)
    if ssh is not None:
        _examine(ssh, examine, problems)
    # A placeholder, so that the problems of the other tables are found too.
    usable = ssh or SshConfig.model_construct()
    whole = _validated(Config, {**raw, "ssh": usable, "source": []}, "", problems)
    if whole is not None:
        _cross_check(whole, found, problems)
    if problems or whole is None:
        raise ConfigError(sorted(set(problems), key=problems.index), file=str(file))
    return whole.model_copy(update={"source": list(found.values())})


def _examine(ssh: SshConfig, examine: Callable[[SshConfig], object], problems: list[str]) -> None:
    try:
        examine(ssh)
    except ConfigError as bad:
        problems.extend(bad.problems)


def _parse(file: Path, text: str | None) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8") if text is None else text)
    except FileNotFoundError as missing:
        option = "" if file == DEFAULT_FILE else f" -c {shlex.quote(str(file))}"
        raise ConfigError([f"no such file; `tunnelmgr init{option}` writes one"], file=str(file)) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else unreadable
        raise ConfigError([f"cannot read the file: {reason}"], file=str(file)) from unreadable
    except (ValueError, RecursionError) as bad:  # a bare ValueError: a number of thousands of digits
        raise ConfigError([f"not valid TOML: {bad}"], file=str(file)) from bad


def _tables(raw: dict[str, Any], key: str, problems: list[str]) -> list[dict[str, Any]]:
    entries = raw.get(key, [])
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    problems.append(f"{key}: write it as [[{key}]] tables")
    return []


def _source(entry: dict[str, Any], place: str, problems: list[str]) -> SourceConfig | None:
    kind = entry.get("type")
    try:
        known = source_type(kind) if isinstance(kind, str) else None
    except Exception as broken:  # noqa: BLE001 - a bulkhead: the plug-in may fail in any way
        problems.append(f"{place}.type: cannot load the plug-in {kind}: {broken}")
        return None
    if known is None:
        problems.append(_without_type(entry, place))
        return None
    try:
        return _validated(known.Config, entry, place, problems)
    except Exception as broken:  # noqa: BLE001 - a bulkhead, as above
        problems.append(f"{place}: the plug-in {kind} failed to check its configuration: {broken!r}")
        return None


def _without_type(entry: dict[str, Any], place: str) -> str:
    """Return what is wrong with the `type` of a source: misspelled, missing, or of no plug-in."""
    kinds = sorted(plugins())
    if "type" in entry:
        kind = entry["type"]
        known = unknown(f"source type {kind!r}", kind if isinstance(kind, str) else "", kinds)
        return f"{place}.type: {known}; installed: {', '.join(kinds)}"
    misspelled = nearest("type", set(entry) - set(SourceConfig.model_fields))
    if misspelled is not None:
        return f"{place}.{misspelled}: unknown key (did you mean type?)"
    return f"{place}.type: missing; write one of {', '.join(kinds)}"


def _validated(model: type[ModelT], table: object, place: str, problems: list[str]) -> ModelT | None:
    try:
        return model.model_validate(table)
    except ValidationError as bad:
        problems.extend(problems_of(bad, model, place))
        return None


def _cross_check(config: Config, sources: dict[int, SourceConfig], problems: list[str]) -> None:
    """Find the problems between tables; `sources` are the valid ones, by their place."""
    _unique("group", {at: group.name for at, group in enumerate(config.group)}, problems)
    _unique("source", {at: source.name for at, source in sources.items()}, problems)
    _unique("forward", {at: forward.name for at, forward in enumerate(config.forward)}, problems)
    _unique("audit_forward", {at: entry.name for at, entry in enumerate(config.audit_forward)}, problems)
    if config.audit_forward and config.controller.audit is None:
        problems.append("audit_forward: controller.audit is not set, and entries are forwarded from its file; set it")
    _forwards_of_groups(config, problems)
    taken: dict[Endpoint, str] = {}
    for at, forward in enumerate(config.forward):
        for endpoint in forward.listen:
            if endpoint in taken:
                problems.append(f"forward[{at}].listen: {endpoint} is used by {taken[endpoint]} already")
            taken.setdefault(endpoint, f"forward[{at}]")
    _unique("authority", {at: authority.name for at, authority in enumerate(config.authority)}, problems)
    known = {authority.name for authority in config.authority}
    for at, source in sources.items():
        problems += [
            f"source[{at}].authorities: {unknown(f'authority {name}', name, known)}; add an [[authority]] of this name"
            for name in source.authorities or ()
            if name not in known
        ]
    first: dict[tuple[str, str], int] = {}
    for at, source in sources.items():
        problems += [
            f"source[{at}].{key}: used by source[{first[key, value]}] already; only one source may use it"
            for key, value in source.exclusive().items()
            if first.setdefault((key, value), at) != at
        ]
    minimum = config.rules().minimum
    for at, source in sources.items():
        for group in sorted(source.groups()):
            least = minimum.get(group, Method.TOFU)
            if not any(method.reaches(least) for method in source.trust):
                problems.append(f"source[{at}].trust: no method here reaches minimum_trust {least} of group {group}")


def _forwards_of_groups(config: Config, problems: list[str]) -> None:
    """Find the tables of groups that name no forward, or one at which their rules could never apply."""
    forwards = {forward.name: forward for forward in config.forwards()}
    for at, group in enumerate(config.group):
        _unique(f"group[{at}].forward", {number: table.name for number, table in enumerate(group.forward)}, problems)
        for number, table in enumerate(group.forward):
            place, forward = f"group[{at}].forward[{number}]", forwards.get(table.name)
            if forward is None:
                name = unknown(f"forward {table.name}", table.name, forwards)
                problems.append(f"{place}.name: {name}; add a [[forward]] of this name")
            elif forward.protocol == "tcp":
                problems.append(f'{place}.name: forward {table.name} has protocol = "tcp", to which no rules apply')
            elif forward.upstream == "proxy":
                problems += [
                    f'{place}.{key}: forward {table.name} has upstream = "proxy": nobody can push or delete there'
                    for key in ("push", "delete", "immutable_tags")
                    if getattr(table, key)
                ]


def _unique(table: str, names: dict[int, str], problems: list[str]) -> None:
    first: dict[str, int] = {}
    for at, name in names.items():
        if first.setdefault(name, at) != at:
            problems.append(f"{table}[{at}].name: {name} is the name of {table}[{first[name]}] already")
