"""Suggestions for a word that is not known: the nearest known one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most similar to `word`, None if none is similar."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.6)), None)
