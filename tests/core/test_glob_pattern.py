"""Globs match as the regular expression that defines them, in a number of steps that no name can blow up."""

import itertools
import re
import sys
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.glob_pattern import compile_glob
from tunnelmgr.core.globs import GlobSet

PARTS = st.sampled_from(["a", "b", "ab", "*", "**", "a*", "*b", "a*b", "*a*", "a*b*a", "*a*b*", "ab*ba"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=6).filter(
    lambda parts: any("*" in part for part in parts) and ("**", "**") not in itertools.pairwise(parts)
)
NAMES = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aba", "abba"]), min_size=1, max_size=6).map("/".join)


def regex_of(pattern: str) -> str:
    """Translate component by component; a `**` that is not last takes its slash along, so it may stand for nothing."""
    *parts, last = pattern.split("/")
    out = ["(?:.+/)?" if part == "**" else "[^/]*".join(map(re.escape, part.split("*"))) + "/" for part in parts]
    return "".join(out) + (".+" if last == "**" else "[^/]*".join(map(re.escape, last.split("*"))))


@settings(deadline=None, max_examples=2000)
@given(PATTERNS.map("/".join), NAMES)
def test_a_glob_matches_what_its_regular_expression_matches(pattern: str, name: str) -> None:
    """Taking the first place that fits loses no match."""
    assert (GlobSet([pattern]).find(name) is not None) == (re.fullmatch(regex_of(pattern), name) is not None)


def test_every_short_name_and_glob_agrees_with_the_regular_expression() -> None:
    """All names of up to four components of `a`, `b` and `ba`, and all globs of up to four parts."""
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
    """Count the calls, also of built-in functions, that one match takes."""
    compiled, count = compile_glob(glob), 0

    def called(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        compiled.matches(name)
    finally:
        sys.setprofile(before)
    return count


def bound(glob: str, name: str) -> int:
    """Return the steps that a match may take: a few for each component of the name and each literal of the glob."""
    return 10 + 5 * (name.count("/") + 1) * (glob.count("*") + glob.count("/") + 1)


@settings(deadline=None, max_examples=500)
@given(PATTERNS.map("/".join), st.lists(st.text("ab", min_size=1, max_size=30), min_size=1, max_size=60).map("/".join))
def test_the_steps_of_a_match_grow_with_the_product_of_name_and_glob(glob: str, name: str) -> None:
    """No name makes it try the same thing again and again."""
    assert steps_of(glob, name) <= bound(glob, name)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_many_inner_crossings_cost_no_more_than_their_number(count: int) -> None:
    """An agent chose a name that fits all parts but the last, which took a regular expression 143 ms."""
    globs = [
        "/".join(["a", *["**", "a"] * count, "x*"]),
        "a*" * count + "x*",
        "/".join(["**", "a/a/b"] * count + ["x*"]),
    ]

    for glob in globs:
        for name in ("/".join("a" * 127), "a" * 255):
            assert steps_of(glob, name) <= bound(glob, name)
