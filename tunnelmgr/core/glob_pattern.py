"""One compiled glob over repository names or tags, and the match against a whole name.

Agents choose the names, so the cost of a match must not explode: there is no backtracking. Three forms are enough:

- One star, `*` or `**`, between two literals: the length and the slashes of the text between them decide.
- No `**`: component by component.
- Several stars with a `**`: a `**` matches any number of components, so the components after it are matched at the
  first position where they fit, which leaves the most for what follows. The same holds for the literals between two
  `*` within a component. What follows the last star must match at the end.

So a name of n components is compared with a pattern of m components at most n x m times.
"""

from dataclasses import dataclass
from typing import Final, Protocol

CROSSING: Final = "**"

_Pieces = tuple[str, ...]
"""The literals of one component, between its stars."""
_Segment = tuple[_Pieces, ...]
"""The components between two `**`."""


class Pattern(Protocol):
    """A compiled glob."""

    def matches(self, text: str) -> bool:
        """Whether the glob matches the whole text, which must already have the glob's literal prefix and suffix."""
        ...


@dataclass(frozen=True, slots=True)
class WithinComponent:
    """A glob with one `*`, by the lengths of the literals before and after it."""

    before: int
    after: int

    def matches(self, text: str) -> bool:
        """See `Pattern`."""
        end = len(text) - self.after
        return self.before <= end and text.find("/", self.before, end) < 0


@dataclass(frozen=True, slots=True)
class AcrossComponents:
    """A glob with one `**`, by the lengths of the literals around it, without the slash that the `**` can match."""

    before: int
    after: int

    def matches(self, text: str) -> bool:
        """See `Pattern`."""
        end = len(text) - self.after
        if not self.after:
            return self.before < end
        # The `**` matches whole components with their slash, or nothing.
        return self.before == end or (self.before + 1 < end and text[end - 1] == "/")


@dataclass(frozen=True, slots=True)
class OfComponents:
    """A glob without `**`."""

    components: _Segment

    def matches(self, text: str) -> bool:
        """See `Pattern`."""
        components = text.split("/")
        return len(components) == len(self.components) and _matches_at(self.components, components, 0)


@dataclass(frozen=True, slots=True)
class OfSegments:
    """A glob with a `**` between each two segments; one at the end must match at least `least` components."""

    first: _Segment
    middle: tuple[_Segment, ...]
    last: _Segment
    least: int

    def matches(self, text: str) -> bool:
        """See `Pattern`."""
        components = text.split("/")
        at, end = len(self.first), len(components) - len(self.last) - self.least
        if at > end or not _matches_at(self.first, components, 0) or not _matches_at(self.last, components, end):
            return False
        for segment in self.middle:
            while at + len(segment) <= end and not _matches_at(segment, components, at):
                at += 1
            at += len(segment)
        return at <= end


def compile_glob(pattern: str) -> Pattern:
    """Compile a glob with at least one star; `globs.py` describes the syntax."""
    if pattern.count("*") == 1:
        before, _, after = pattern.partition("*")
        return WithinComponent(len(before), len(after))
    before, crossing, after = pattern.partition(CROSSING)
    if crossing and "*" not in before + after:
        return AcrossComponents(len(before), len(after.removeprefix("/")))
    segments: list[list[_Pieces]] = [[]]
    for part in pattern.split("/"):
        if part == CROSSING:
            segments.append([])
        else:
            segments[-1].append(tuple(part.split("*")))
    first, *rest = map(tuple, segments)
    if not rest:
        return OfComponents(first)
    return OfSegments(first, tuple(rest[:-1]), rest[-1], least=0 if rest[-1] else 1)


def _matches_at(segment: _Segment, components: list[str], at: int) -> bool:
    """Whether each component of a segment matches, from index `at` on; the caller checks that there are enough."""
    for pieces in segment:
        if not _component_matches(pieces, components[at]):
            return False
        at += 1
    return True


def _component_matches(pieces: _Pieces, component: str) -> bool:
    """Whether a component consists of these literals, in their order, with any text between them."""
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return component == first
    at, end = len(first), len(component) - len(last)
    if at > end or not component.startswith(first) or not component.endswith(last):
        return False
    for piece in pieces[1:-1]:
        found = component.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
