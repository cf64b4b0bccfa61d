"""Texts that somebody else wrote, made fit for terminals, log messages and reasons: the one place that decides how.

Agents, tags in the cloud and remote services choose names, labels and messages. What of them is not printable steers a
terminal (control characters and escape sequences, C0 and C1) or misleads a reader (marks that turn the direction of
writing, characters without a glyph): ECMA-48, and Unicode Technical Report 36.
"""

import json

LIMIT = 200
"""Characters of a foreign text that are kept in a message."""


def printable(text: str, keep: str = "") -> str:
    """Return `text` with `?` for each character that is neither printable nor in `keep`.

    Printable is what `str.isprintable` calls so: of Unicode's categories neither Other nor Separator, but the space.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else "?" for c in text)


def sanitize(text: str, limit: int = LIMIT) -> str:
    """Return `text` on one printable line of at most `limit` characters."""
    # Cut before the work is done, and once more after it, so that a huge text costs no more than a long one.
    words = " ".join(text[: 4 * limit].split())
    return printable(words if len(words) <= limit else words[: limit - 1] + "…")


def error_text(error: BaseException) -> str:
    """Return what a foreign error says, made fit for people's eyes; its type where it says nothing."""
    return sanitize(str(error)) or type(error).__name__


def escaped(document: str) -> str:
    r"""Return a JSON document that means the same, with a `\u` escape for each character that is not printable.

    Outside of its strings, such a document may hold line feeds only.
    """
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)
