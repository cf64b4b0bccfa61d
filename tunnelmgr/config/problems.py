"""The problems that validation finds, as sentences: the place, what is wrong, and the nearest key or value."""

import re
from collections.abc import Iterable, Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunnelmgr.config.values import UNITS
from tunnelmgr.core.spelling import nearest

_PREFIX = re.compile(r"\^([a-z:/]+)")
"""A pattern that requires a beginning only."""
_UNITS = [(unit, UNITS[unit]) for unit in "dhm"]
_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


def problems_of(bad: ValidationError, model: type[BaseModel], place: str) -> list[str]:
    """Return the problems that pydantic found in the table at `place`, which `model` describes."""
    return [_problem(error, model, place) for error in bad.errors()]


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Return `unknown WHAT`, with the nearest known name if one is similar."""
    near = nearest(given, known)
    return f"unknown {what}" + (f" (did you mean {near}?)" if near else "")


def _problem(error: ErrorDetails, model: type[BaseModel], place: str) -> str:
    for part in error["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return f"{place}: {_message(error, model)}"


def _message(error: ErrorDetails, model: type[BaseModel]) -> str:
    match error["type"]:
        case "missing":
            message = "missing"
        case "extra_forbidden":
            message = unknown("key", str(error["loc"][-1]), _keys_at(model, error["loc"][:-1]))
        case "too_short":
            message = "must have at least one entry"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            message += _given(error) if message.startswith("write ") else ""
        case "string_pattern_mismatch" if prefix := _PREFIX.fullmatch(error["ctx"]["pattern"]):
            message = f"must begin with {prefix[1]}{_given(error)}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" if isinstance(error["input"], str):
            message = f"must be {_bound(error)}{_given(error)}"
        case _:
            text = error["msg"].replace("Input should", "must", 1)
            message = f"{text[0].lower()}{text[1:]}{_given(error)}"
    return message


def _bound(error: ErrorDetails) -> str:
    """Return the bound that a duration violates, as durations are written."""
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    ((name, bound),) = error["ctx"].items()
    unit, length = next((one for one in _UNITS if bound and not bound % one[1]), ("s", 1.0))
    return f"{words[name]} {bound / length:g}{unit}"


def _given(error: ErrorDetails) -> str:
    """Return the wrong value, if it is a short one."""
    shown = repr(error["input"])
    return f", not {shown}" if len(shown) <= _SHOWN and isinstance(error["input"], str | int | float) else ""


def _keys_at(model: type[BaseModel], place: Iterable[int | str]) -> Iterable[str]:
    """Return the keys of a table inside `model`."""
    found: type[BaseModel] | None = model
    for part in place:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = None if field is None else next(_models_in(field.annotation), None)
    return found.model_fields if found is not None else ()


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the tables that a type such as `list[StaticAgent]` or `X | None` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
