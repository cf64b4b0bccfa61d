"""Jinja2's environment for the page: every value is escaped, and an undefined one is an error."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from tunnelmgr.control.units import size
from tunnelmgr.core.sanitize import printable

STATIC = {"status.css": "text/css", "status.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""The files of the page with their types."""
_CODE = re.compile(r"`([^`]+)`")
MAX_SHORT = 48
"""Characters of a name in a table."""
_FOLDER = resources.files("tunnelmgr.web")


@cache
def environment() -> Environment:
    """Return the environment, in which each template is compiled once."""
    made = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"size": size, "moment": _moment, "short": _short, "with_code": _with_code}
    made.globals |= {"version": _static_version()}
    return made


def rendered(template: str, model: dict[str, Any]) -> str:
    """Return a template filled with a model."""
    return environment().get_template(template).render(model)


@cache
def static_file(name: str) -> bytes:
    """Return the content of a file of `STATIC`."""
    return (_FOLDER / "static" / name).read_bytes()


def _static_version() -> str:
    """Return a text that changes with the static files, so that browsers may keep them."""
    return blake2b(b"".join(static_file(name) for name in STATIC), digest_size=6).hexdigest()


def _template(name: str) -> str:
    return (_FOLDER / "templates" / name).read_text(encoding="utf-8")


def _finalized(value: Any) -> Any:  # noqa: ANN401 - Jinja2's interface
    """Replace characters that could mislead a reader, such as those that change the direction of writing."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _short(text: str) -> str:
    """Return a text for a cell of a long table: names from outside may have any length."""
    return text if len(text) <= MAX_SHORT else f"{text[: MAX_SHORT - 1]}…"


def _with_code(text: str) -> Markup:
    """Return an escaped text in which what stands between backticks is code, as in the messages of errors."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(printable(text)))))  # noqa: S704 - escaped before


def _moment(timestamp: str) -> str:
    """Return a timestamp of the API as people read it."""
    return f"{datetime.fromisoformat(timestamp).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def age_filter(now: float) -> Callable[[str], str]:
    """Return a function that says how long ago, or how far ahead, a timestamp of the API is."""

    def age(timestamp: str) -> str:
        seconds = abs(now - datetime.fromisoformat(timestamp).timestamp())
        for limit, length, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
            if seconds < limit:
                return f"{seconds // length:.0f} {unit}"
        return f"{seconds // 86400:.0f} d"

    return age
