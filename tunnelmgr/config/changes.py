"""What differs between two configurations, key by key, and what a reload would change by it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tunnelmgr.config.authority_files import PublicKeyFile, RevocationFile
from tunnelmgr.config.model import Config
from tunnelmgr.core.preview import AgentEffect

Value = Any
"""A value as JSON has it."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One key that differs, such as `group ci: pull`; None stands for a key or table that is not there."""

    key: str
    before: Value
    after: Value


@dataclass(frozen=True, slots=True)
class Preview:
    """What a reload would change: keys of the configuration, agents, and what waits for the next start."""

    changes: tuple[ConfigChange, ...]
    agents: tuple[AgentEffect, ...]
    remarks: tuple[str, ...]


def changes(before: Config, after: Config) -> list[ConfigChange]:
    """Return every key that differs, in the order of the file's tables; tables with a name are compared by name."""
    return list(_between("", _plain(before), _plain(after)))


def _plain(value: object) -> Value:
    """Return a value as JSON has it, without keys that have their defaults; sets in order."""
    if isinstance(value, BaseModel):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields if not _is_default(value, key)}
    if isinstance(value, PublicKeyFile | RevocationFile):
        return {key: _plain(getattr(value, key)) for key in value.__slots__}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def _is_default(model: BaseModel, key: str) -> bool:
    field = type(model).model_fields[key]
    return not field.is_required() and bool(getattr(model, key) == field.get_default(call_default_factory=True))


def _between(place: str, before: Value, after: Value) -> Iterator[ConfigChange]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            yield from _below(place, key, before.get(key), after.get(key))
    else:
        yield ConfigChange(place, before, after)


def _below(place: str, key: str, before: Value, after: Value) -> Iterator[ConfigChange]:
    """Compare two values of a key, of which one may be missing; tables with names are compared by name.

    A missing table has no keys, and missing tables with names are none. But `pull = []` grants nothing, while without
    `pull` a group may pull everything; and an empty `[cache]` switches the cache on.
    """
    inner = f"{place}: {key}" if place else key
    there = before or after
    if there and (isinstance(there, Mapping) or _are_named(there)):
        before, after = (type(there)() if one is None else one for one in (before, after))
    if not (_are_named(before) and _are_named(after)):
        yield from _between(inner, before, after)
        return
    tables = [{table["name"]: table for table in tables} for tables in (before, after)]
    for name in dict.fromkeys((*tables[0], *tables[1])):
        yield from _between(f"{inner} {name}", tables[0].get(name), tables[1].get(name))


def _are_named(value: Value) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) and "name" in one for one in value)
