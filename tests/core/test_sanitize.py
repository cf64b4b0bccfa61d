"""Any text from outside can be shown once it is sanitized."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.sanitize import LIMIT, error_text, escaped, printable, sanitize

STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Control characters, direction marks, lone surrogates, characters without a glyph, and line separators."""
texts = st.text(st.characters(), max_size=300)
json_values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)
fuzzed = settings(derandomize=True, database=None, max_examples=300)


@fuzzed
@given(text=texts)
def test_no_character_that_controls_a_terminal_is_left(text: str) -> None:
    """Each character that is not printable becomes one `?`, and no other character changes."""
    shown = printable(text)

    assert not {unicodedata.category(char) for char in shown} & STEERING
    assert len(shown) == len(text)
    assert all(after == (before if before.isprintable() else "?") for before, after in zip(text, shown, strict=True))
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "char", ["\x00", "\x1b", "\x7f", "\x80", "\x9b", "\x85", "\u200f", "\u202e", "\u2028", "\ud800"]
)
def test_each_kind_of_unprintable_character_is_replaced(char: str) -> None:
    """C0, DEL, C1 with its CSI, direction marks, separators and half surrogates are replaced."""
    assert printable(f"a{char}b") == "a?b"


def test_a_character_that_is_kept_stays() -> None:
    """Characters in `keep` are not replaced."""
    assert printable("a\nb\tc", keep="\n") == "a\nb?c"


@fuzzed
@given(text=texts, limit=st.integers(1, 400))
def test_a_sanitized_text_is_one_short_line(text: str, limit: int) -> None:
    """A sanitized text is one printable line within the limit, and sanitizing it again changes nothing."""
    line = sanitize(text, limit)

    assert len(line) <= limit
    assert line.isprintable()
    assert sanitize(line, limit) == line.strip()


@fuzzed
@given(text=texts)
def test_every_error_has_a_printable_text(text: str) -> None:
    """The text of an error is its sanitized message, or the name of its type."""
    shown = error_text(ValueError(text))

    assert shown
    assert shown.isprintable()
    assert len(shown) <= LIMIT


@fuzzed
@given(value=json_values)
def test_an_escaped_document_means_the_same_and_can_be_shown(value: object) -> None:
    """An escaped JSON document is printable and has the same value."""
    document = escaped(json.dumps(value, indent=2, ensure_ascii=False))

    assert json.loads(document) == value
    assert document.replace("\n", "").isprintable()
