"""Reading the file: one frozen `Config`, or every problem at once, each with its place."""

import os
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunnelmgr.config.model import DEFAULT_FILE, Config, SshConfig
from tunnelmgr.config.sources import SourceConfig, plugins, source_type
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def config_file(option: Path | None) -> Path:
    """Return the file to read: the option, else `TUNNELMGR_CONFIG`, else the one in /etc."""
    return option or Path(os.environ.get("TUNNELMGR_CONFIG") or DEFAULT_FILE)


def load(file: Path, examine: Callable[[SshConfig], object] = lambda _: None) -> Config:
    """Read and check the file.

    `examine` looks further into `[ssh]` if that table is valid, whatever else is wrong, and may raise ConfigError.
    Raises ConfigError with every problem found, each with its place, such as `source[1].poll: …`.
    """
    raw = _parse(file)
    problems: list[str] = []
    tables = enumerate(_tables(raw, "source", problems))
    sources = {at: _source(entry, f"source[{at}]", problems) for at, entry in tables}
    found = {at: source for at, source in sources.items() if source is not None}
    ssh = _validated(partial(SshConfig.model_validate, raw.get("ssh", {})), "ssh", problems)
    if ssh is not None:
        _examined(partial(examine, ssh), problems)
    # A stand-in, so that the problems of the other tables are found too.
    usable = ssh or SshConfig.model_construct()
    whole = _validated(partial(Config.model_validate, {**raw, "ssh": usable, "source": []}), "", problems)
    if whole is not None:
        _cross_check(whole, found, problems)
    if problems or whole is None:
        raise ConfigError(sorted(set(problems), key=problems.index), file=str(file))
    return whole.model_copy(update={"source": list(found.values())})


def _examined(examine: Callable[[], object], problems: list[str]) -> None:
    try:
        examine()
    except ConfigError as bad:
        problems.extend(bad.problems)


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise ConfigError(["no such file; `tunnelmgr init` writes one"], file=str(file)) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError([f"cannot be read: {unreadable}"], file=str(file)) from unreadable
    except (ValueError, RecursionError) as bad:  # a bare ValueError is a number of thousands of digits
        raise ConfigError([f"is not TOML: {bad}"], file=str(file)) from bad


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
        problems.append(f"{place}.type: the plug-in {kind} cannot be loaded: {broken}")
        return None
    if known is None:
        problems.append(f"{place}.type: {kind!r} is none of {', '.join(sorted(plugins()))}")
        return None
    try:
        return _validated(partial(known.Config.model_validate, entry), place, problems)
    except Exception as broken:  # noqa: BLE001 - a bulkhead, as above
        problems.append(f"{place}: the plug-in {kind} cannot check its configuration: {broken!r}")
        return None


def _validated(validate: Callable[[], ModelT], place: str, problems: list[str]) -> ModelT | None:
    try:
        return validate()
    except ValidationError as bad:
        problems.extend(_problem(error, place) for error in bad.errors())
        return None


def _problem(error: ErrorDetails, place: str) -> str:
    for part in error["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    elif error["type"] == "missing":
        message = "missing"
    elif error["type"] in {"string_pattern_mismatch", "enum", "literal_error", "greater_than", "less_than_equal"}:
        message = f"{message[0].lower()}{message[1:]}, not {error['input']!r}"
    return f"{place}: {message}"


def _cross_check(config: Config, sources: dict[int, SourceConfig], problems: list[str]) -> None:
    """Find what only shows when all tables are seen together; `sources` are those that are whole, by their place."""
    _unique("group", {at: group.name for at, group in enumerate(config.group)}, problems)
    _unique("source", {at: source.name for at, source in sources.items()}, problems)
    _unique("forward", {at: forward.name for at, forward in enumerate(config.forward)}, problems)
    taken: dict[Endpoint, str] = {}
    for at, forward in enumerate(config.forward):
        for endpoint in forward.listen:
            if endpoint in taken:
                problems.append(f"forward[{at}].listen: {endpoint} is taken by {taken[endpoint]}")
            taken.setdefault(endpoint, f"forward[{at}]")
    _unique("authority", {at: authority.name for at, authority in enumerate(config.authority)}, problems)
    known = {authority.name for authority in config.authority}
    for at, source in sources.items():
        problems += [
            f"source[{at}].authorities: there is no [[authority]] named {name}"
            for name in source.authorities or ()
            if name not in known
        ]
    first: dict[tuple[str, str], int] = {}
    for at, source in sources.items():
        problems += [
            f"source[{at}].{key}: source[{first[key, value]}] has it already, and it serves one source only"
            for key, value in source.alone().items()
            if first.setdefault((key, value), at) != at
        ]
    minimum = config.rules().minimum
    for at, source in sources.items():
        for group in sorted(source.groups()):
            least = minimum.get(group, Method.TOFU)
            if not any(method.reaches(least) for method in source.trust):
                problems.append(f"source[{at}].trust: none of these reaches group {group}'s minimum_trust, {least}")


def _unique(table: str, names: dict[int, str], problems: list[str]) -> None:
    first: dict[str, int] = {}
    for at, name in names.items():
        if first.setdefault(name, at) != at:
            problems.append(f"{table}[{at}].name: {name} is taken by {table}[{first[name]}]")
