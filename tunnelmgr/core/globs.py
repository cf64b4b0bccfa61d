"""Sets of globs over repository names and tags, compiled once; a search does not try each of them.

- `*` matches any characters within one path component.
- `**` matches any number of whole components: `**/app` matches `app`, `team/**` matches all below `team`, not `team`.
- Everything else is literal.

A pattern without a star is looked up in a set. A glob is indexed by its literal prefix and suffix, so only globs whose
prefix and suffix both match are tried. `glob_pattern.py` has the match of one glob.
"""

import re
from collections.abc import Iterable
from typing import Final

from tunnelmgr.core.glob_pattern import Pattern, compile_glob

_NAME_PART: Final = re.compile(r"[a-z0-9._*-]+")
_TAG_GLOB: Final = re.compile(r"[A-Za-z0-9_.*-]{1,128}")


class GlobSet:
    """A set of patterns; `find` returns the most specific one that matches; their order does not matter."""

    __slots__ = ("_globs", "_literals", "_prefix_lengths", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = frozenset(patterns)
        self._literals = frozenset(pattern for pattern in self.patterns if "*" not in pattern)
        self._globs: dict[str, _BySuffix] = {}
        # The longest first, so that `find` returns the more specific pattern.
        for pattern in sorted(self.patterns - self._literals, key=lambda pattern: (-len(pattern), pattern)):
            prefix, suffix = _literal_ends(pattern)
            self._globs.setdefault(prefix, _BySuffix()).add(suffix, pattern)
        self._prefix_lengths = tuple(sorted({len(prefix) for prefix in self._globs}, reverse=True))

    def find(self, text: str) -> str | None:
        """Return a pattern that matches the whole of `text`, or None."""
        if text in self._literals:
            return text
        for length in self._prefix_lengths:
            bucket = self._globs.get(text[:length])
            if bucket is not None and (found := bucket.find(text)) is not None:
                return found
        return None


class _BySuffix:
    __slots__ = ("_globs", "_lengths")

    def __init__(self) -> None:
        self._globs: dict[str, list[tuple[Pattern, str]]] = {}
        self._lengths: tuple[int, ...] = ()

    def add(self, suffix: str, pattern: str) -> None:
        self._globs.setdefault(suffix, []).append((compile_glob(pattern), pattern))
        self._lengths = tuple(sorted({len(known) for known in self._globs}, reverse=True))

    def find(self, text: str) -> str | None:
        for length in self._lengths:
            for compiled, pattern in self._globs.get(text[len(text) - length :], ()):
                if compiled.matches(text):
                    return pattern
        return None


def check_name_glob(pattern: str) -> None:
    """Raise ValueError unless `pattern` can match names of repositories."""
    if "**/**" in pattern:
        raise ValueError(f"{pattern!r}: one `**` already matches any number of path components")
    for part in pattern.split("/"):
        if part == "**":
            continue
        if "**" in part:
            raise ValueError(f"{pattern!r}: `**` matches whole path components, so write it between slashes")
        if not _NAME_PART.fullmatch(part):
            raise ValueError(f"{pattern!r}: a repository pattern has lower-case components of a-z 0-9 . _ - and `*`")


def check_tag_glob(pattern: str) -> None:
    """Raise ValueError unless `pattern` can match tags."""
    if "**" in pattern or not _TAG_GLOB.fullmatch(pattern):
        raise ValueError(f"{pattern!r}: a tag pattern has letters, digits, . _ - and single `*`")


def _literal_ends(pattern: str) -> tuple[str, str]:
    """Return the text before the first star and after the last one, without the slash that a `**` can match."""
    before, _, after = pattern.rpartition("*")
    return pattern.partition("*")[0], after.removeprefix("/") if before.endswith("*") else after
