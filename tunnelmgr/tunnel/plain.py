"""Texts that an agent wrote, made fit for people's eyes."""

LIMIT = 200
"""Characters of a foreign text that are kept."""


def plain(text: str, limit: int = LIMIT) -> str:
    """Return `text` on one line of at most `limit` characters, each one that would steer a terminal as `?`.

    That takes control characters, escape sequences, and marks that turn the direction of writing.
    """
    # Cut before the work is done, and once more after it, so that a huge text costs no more than a long one.
    words = " ".join(text[: 4 * limit].split())
    cut = words if len(words) <= limit else words[: limit - 1] + "…"
    return "".join(char if char.isprintable() else "?" for char in cut)


def said(error: BaseException) -> str:
    """Return what a foreign error says, made fit for people's eyes; its type where it says nothing."""
    return plain(str(error)) or type(error).__name__
