"""Globs match as the regular expressions that define them, in a bounded number of steps."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.call_count import count_calls
from tunnelmgr.core.glob_pattern import compile_glob
from tunnelmgr.core.globs import GlobSet

PARTS = st.sampled_from(["a", "b", "ab", "*", "**", "a*", "*b", "a*b", "*a*", "a*b*a", "*a*b*", "ab*ba"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=6).filter(
    lambda parts: any("*" in part for part in parts) and ("**", "**") not in itertools.pairwise(parts)
)
NAMES = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aba", "abba"]), min_size=1, max_size=6).map("/".join)


def regex_of(pattern: str) -> str:
    """Translate a glob by components; a `**` that is not last includes its slash, so it may match nothing."""
    *parts, last = pattern.split("/")
    out = ["(?:.+/)?" if part == "**" else "[^/]*".join(map(re.escape, part.split("*"))) + "/" for part in parts]
    return "".join(out) + (".+" if last == "**" else "[^/]*".join(map(re.escape, last.split("*"))))


@settings(deadline=None, max_examples=2000)
@given(PATTERNS.map("/".join), NAMES)
def test_a_glob_matches_what_its_regular_expression_matches(pattern: str, name: str) -> None:
    """A glob matches exactly what its regular expression matches, although it takes the first position that fits."""
    assert (GlobSet([pattern]).find(name) is not None) == (re.fullmatch(regex_of(pattern), name) is not None)


def test_every_short_name_and_glob_agrees_with_the_regular_expression() -> None:
    """All names of up to four components of `a`, `b` and `ba` agree with all globs of up to four parts."""
    parts = ("a", "*", "**", "*a", "b*")
    globs = [
        "/".join(chosen)
        for count in range(1, 5)
        for chosen in itertools.product(parts, repeat=count)
        if any("*" in part for part in chosen) and ("**", "**") not in itertools.pairwise(chosen)
    ]
    names = ["/".join(chosen) for count in range(1, 5) for chosen in itertools.product(("a", "b", "ba"), repeat=count)]

    for glob in globs:
        regex, compiled = re.compile(regex_of(glob)), GlobSet([glob])
        wrong = [name for name in names if bool(compiled.find(name)) != bool(regex.fullmatch(name))]
        assert not wrong, glob


def steps_of(glob: str, name: str) -> int:
    """Return the number of calls, including those of built-in functions, of one match."""
    compiled = compile_glob(glob)
    return count_calls(lambda: compiled.matches(name))


def bound(glob: str, name: str) -> int:
    """Return the steps that a match may take: a few for each component of the name and each literal of the glob."""
    return 10 + 5 * (name.count("/") + 1) * (glob.count("*") + glob.count("/") + 1)


@settings(deadline=None, max_examples=500)
@given(PATTERNS.map("/".join), st.lists(st.text("ab", min_size=1, max_size=30), min_size=1, max_size=60).map("/".join))
def test_the_steps_of_a_match_grow_with_the_product_of_name_and_glob(glob: str, name: str) -> None:
    """No name makes a match take more steps than the product of the name's and the glob's lengths allows."""
    assert steps_of(glob, name) <= bound(glob, name)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_many_inner_crossings_cost_no_more_than_their_number(count: int) -> None:
    """A name that matches all parts but the last costs few steps; it took a regular expression 143 ms."""
    globs = [
        "/".join(["a", *["**", "a"] * count, "x*"]),
        "a*" * count + "x*",
        "/".join(["**", "a/a/b"] * count + ["x*"]),
    ]

    for glob in globs:
        for name in ("/".join("a" * 127), "a" * 255):
            assert steps_of(glob, name) <= bound(glob, name)
