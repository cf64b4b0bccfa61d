"""Tags that are written once, and tags that are exempt because clients must rewrite them."""

import re

import pytest

from tunnelmgr.core.immutable_tags import ImmutableTags, is_referrers_tag

HEX = "0123456789abcdef" * 4
REFERRERS = f"sha256-{HEX}"


@pytest.mark.parametrize(
    "tag",
    [
        REFERRERS,
        f"sha512-{HEX}",
        f"sha512-{HEX}{HEX}",
        f"{REFERRERS}.sig",
        f"{REFERRERS}.att",
        f"{REFERRERS}.sbom",
        f"sha512-{HEX}{HEX}.sig",
    ],
)
def test_the_fallback_tags_of_oras_and_cosign_are_exempt_from_a_star(tag: str) -> None:
    """A tag that lists what refers to a manifest can be rewritten although `*` protects every other tag."""
    assert is_referrers_tag(tag)
    assert ImmutableTags(["*"]).rule(tag) is None
    assert ImmutableTags(["*", "v*"]).rule("v1") == "immutable_tags v*"


@pytest.mark.parametrize(
    "tag",
    [
        f"sha256-{HEX}0",
        f"sha256-{HEX[1:]}",
        f"sha256-{HEX.upper()}",
        f"SHA256-{HEX}",
        f"sha256-{HEX}.exe",
        f"sha256-{HEX}.sig.sig",
        f"md5-{HEX}",
        f"xsha256-{HEX}",
        f"sha512-{HEX}0",
    ],
)
def test_a_tag_that_only_resembles_a_fallback_tag_is_protected(tag: str) -> None:
    """A tag that only resembles a fallback tag is protected, so no image can be pushed under it twice."""
    assert not is_referrers_tag(tag)
    assert ImmutableTags(["*"]).rule(tag) == "immutable_tags *"


def test_a_pattern_with_the_algorithm_protects_fallback_tags_too() -> None:
    """A pattern that begins with the algorithm, such as `sha256-*`, protects fallback tags too."""
    tags = ImmutableTags(["*", "sha256-*"])

    assert tags.rule(REFERRERS) == "immutable_tags sha256-*"
    assert tags.rule(f"sha512-{HEX}") is None


def test_no_patterns_protect_nothing() -> None:
    """A group without `immutable_tags` protects no tag, and its value is false."""
    assert not ImmutableTags([])
    assert ImmutableTags(["v1"])
    assert ImmutableTags([]).rule("v1") is None


@pytest.mark.parametrize("pattern", ["", "a/b", "**", "a b"])
def test_an_invalid_pattern_is_in_the_error(pattern: str) -> None:
    """The error for an invalid tag pattern shows the pattern."""
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        ImmutableTags(["v*", pattern])
