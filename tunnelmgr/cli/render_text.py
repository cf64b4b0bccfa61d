"""Texts that tables and summaries are made of."""

from rich.text import Text

from tunnelmgr.core.sanitize import printable


def cell(text: object, style: str = "") -> Text:
    """Return a text for a table, without markup; characters that would control the terminal are replaced."""
    return Text(printable(str(text)), style=style)


def count(number: int, thing: str) -> str:
    """Return a number with its noun, in the singular or the plural."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def marked(line: Text, *, ok: bool) -> Text:
    """Return a line after a green or a red mark."""
    return Text.assemble(("● ", "green") if ok else ("● ", "red"), line)
