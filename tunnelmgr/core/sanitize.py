"""Makes texts from outside safe for terminals, log messages and reasons.

Agents, cloud tags and remote services choose names, labels and messages. Characters in them that are not printable can
control a terminal (control characters and escape sequences, C0 and C1) or mislead a reader (marks that change the
direction of writing, characters without a glyph): ECMA-48, and Unicode Technical Report 36.
"""

import json

LIMIT = 200
"""Characters of a text from outside that are kept in a message."""


def printable(text: str, keep: str = "") -> str:
    """Return `text` with `?` for each character that is neither printable nor in `keep`.

    Printable means `str.isprintable`: Unicode's categories Other and Separator are not, except the space.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else "?" for c in text)


def sanitize(text: str, limit: int = LIMIT) -> str:
    """Return `text` on one printable line of at most `limit` characters."""
    # Truncated before and after the work, so that a huge text costs no more than a long one.
    words = " ".join(text[: 4 * limit].split())
    return printable(words if len(words) <= limit else words[: limit - 1] + "…")


def error_text(error: BaseException) -> str:
    """Return the sanitized message of an error from outside, or the name of its type if it has none."""
    return sanitize(str(error)) or type(error).__name__


def escaped(document: str) -> str:
    r"""Return a JSON document that means the same, with a `\u` escape for each character that is not printable.

    Outside of its strings, such a document may hold line feeds only.
    """
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)
