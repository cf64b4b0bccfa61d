"""Globs match as the regular expressions that define them, in a bounded number of steps."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.call_count import count_calls
from tunnelmgr.core.glob_pattern import compile_glob
from tunnelmgr.core.globs import GlobSet

PARTS = ("a", "b", "ab", "*", "**", "a*", "*b", "a*b", "*a*", "a*b*a", "*a*b*", "ab*ba")
NAME_PARTS = ("a", "b", "ab", "ba", "aba", "abba")
seeds = given(seed=st.integers(0, 2**32))
"""Each seed makes many globs and names: hypothesis takes milliseconds for one whose parts it chooses itself."""


def random_glob(dice: random.Random) -> str:
    """Return a glob with a wildcard, of up to six parts."""
    parts = dice.choices(PARTS, k=dice.randint(1, 6))
    if any("*" in part for part in parts) and ("**", "**") not in itertools.pairwise(parts):
        return "/".join(parts)
    return random_glob(dice)


def regex_of(pattern: str) -> str:
    """Translate a glob by components; a `**` that is not last includes its slash, so it may match nothing."""
    *parts, last = pattern.split("/")
    out = ["(?:.+/)?" if part == "**" else "[^/]*".join(map(re.escape, part.split("*"))) + "/" for part in parts]
    return "".join(out) + (".+" if last == "**" else "[^/]*".join(map(re.escape, last.split("*"))))


@settings(max_examples=100)
@seeds
def test_a_glob_matches_what_its_regular_expression_matches(seed: int) -> None:
    """A glob matches exactly what its regular expression matches, although it takes the first position that fits."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(10):
        glob = random_glob(dice)
        regex, compiled = re.compile(regex_of(glob)), GlobSet([glob])
        for _ in range(10):
            name = "/".join(dice.choices(NAME_PARTS, k=dice.randint(1, 6)))
            assert (compiled.find(name) is not None) == (regex.fullmatch(name) is not None), (glob, name)


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


@settings(max_examples=50)
@seeds
def test_the_steps_of_a_match_grow_with_the_product_of_name_and_glob(seed: int) -> None:
    """No name makes a match take more steps than the product of the name's and the glob's lengths allows."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(20):
        glob = random_glob(dice)
        name = "/".join("".join(dice.choices("ab", k=dice.randint(1, 30))) for _ in range(dice.randint(1, 60)))
        assert steps_of(glob, name) <= bound(glob, name), (glob, name)


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
