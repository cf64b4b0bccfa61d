"""The project's texts use plain, standard words: these tests reject what readers have stumbled over."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = ("tunnelmgr/", "tests/", "lab/", "benchmarks/", "docs/", "ansible/", "systemd/", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".tf", ".md", ".sh", ".yml", ".j2", ".toml", ".service", ".c"}

WORDS = {
    "anew": "again",
    "whoever": "who, anyone",
    "heed": "handle, follow",
    "hear": "receive, read",
    "hears": "receives, reads",
    "heard": "received, read",
    "hearing": "receiving",
    "bell": "timer, schedule",
    "bells": "timers, schedules",
    "ring": "fire, run",
    "rings": "fires, runs",
    "rung": "fired, run",
    "robin": "fair queue",
    "bench": "pool, benchmark",
    "errand": "session",
    "quicken": "disable Nagle's algorithm",
    "quickened": "with Nagle's algorithm disabled",
    "lull": "pause",
    "breather": "pause",
    "pour": "send, stream",
    "poured": "sent, streamed",
    "desk": "fixture",
    "whosever": "of any agent",
    "squatter": "another process",
    "squat": "occupy",
    "lest": "so that … not",
    "is no good": "is invalid",
    "as good as": "nearly, equivalent to",
    "be it": "whether",
    "whose ever": "of any",
    "as ever": "as before",
    "just now": "recently",
    "take note": "record",
    "takes note": "records",
    "what there is": "everything",
    "whatever": "any, every, regardless of",
    "begun": "started",
    "company": "group, others",
    "door": "listener, port",
    "doors": "listeners, ports",
    "nobody's": "of no agent, of no member",
    "nobody else's": "of no other",
    "of its own accord": "by default, by itself",
    "of their own accord": "by default, by themselves",
    "in its own time": "later, separately",
    "in vain": "without success",
    "by and by": "later",
    "for good": "permanently",
    "for ever": "forever",
    "as whom": "that … as",
    "go on": "continue",
    "goes on": "continues",
    "lets in": "admits",
    "let in": "admitted",
}
MIN_WORDS = 4
"""Words in a test's docstring; a shorter one is an aphorism that only its author understands."""
SENTENCE = re.compile(r"(?!(?:And|But|Nor|Or|So|Also|Too|Likewise|Then)\b)[^a-z\s].*[.:]", re.DOTALL)
"""A sentence begins with a capital, a digit or a quoted name, not with a word that continues another one."""
PATTERN = re.compile(rf"(?<![\w-])({'|'.join(WORDS)})(?![\w-])", re.IGNORECASE)
VERB = "(?:is|are|has|have|does|can|may|knows|names)"
SUBJECT = r"(?:it|they|none|nothing|no \w+)"
START = r'(?:^|[.;"] *)'
PHRASES = {
    r"(?i)(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|fewer|later|earlier|other|better|worse)": "is not a",
    r"(?<!if )(?<!there )\bis none(?=[.,;:])": "is invalid, is missing",
    r"(?i)\bnot? (?:\w+ ){1,4}any more\b": "no longer",
    r"(?i)\b(?:by|for|of|make|return|write|read|until|open) so many\b(?! that)": "this many",
    rf"(?i)[,;] where {SUBJECT} {VERB}\b": "if",
    rf"(?i){START}where {SUBJECT} {VERB}\b": "if",
    rf"(?i){START}(?:not until|only then|hardly|seldom) (?:\w+ ){{0,6}}?(?:do|did|{VERB})\b": "only after",
    rf"(?i){START}so (?:\w+ ){{1,4}}(?:it|they) (?:do|does|did)\b": "the subject first",
}
PHRASE_PATTERNS = [(re.compile(phrase), advice) for phrase, advice in PHRASES.items()]
EXCEPTIONS = (
    "make bench",  # the target's name
    "build/bench",  # the target's folder
    "--group bench",  # the dependency group of the target
    "requirements-bench.lock",
)


def texts() -> list[Path]:
    """Return the tracked files that people read, except this one."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        ROOT / name
        for name in tracked.splitlines()
        if name.startswith(READ) and Path(name).suffix in SUFFIXES and (ROOT / name) != Path(__file__)
    ]


def found(text: str) -> list[str]:
    """Return the rejected words of a text, each with its line and the words to use."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        for exception in EXCEPTIONS:
            line = line.replace(exception, "")  # noqa: PLW2901 - what remains of it
        lines += [f"{number}: {word!r}: use {WORDS[word.lower()]}" for word in PATTERN.findall(line)]
        for pattern, advice in PHRASE_PATTERNS:
            lines += [f"{number}: {phrase[0].strip()!r}: use {advice}" for phrase in pattern.finditer(line)]
    return lines


def incomplete_docstrings(source: str) -> list[str]:
    """Return the tests in a source whose docstring is not a full sentence that stands alone."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            sentence = (ast.get_docstring(node) or "").partition("\n\n")[0]
            if len(sentence.split()) < MIN_WORDS or not SENTENCE.fullmatch(sentence):
                names.append(node.name)
    return names


def test_no_text_uses_a_rejected_word() -> None:
    """Code, tests and documents use the standard term for each rejected word."""
    rejected = {str(file.relative_to(ROOT)): found(file.read_text(encoding="utf-8")) for file in texts()}

    assert {name: lines for name, lines in rejected.items() if lines} == {}


@pytest.mark.parametrize(
    "file", [file for file in texts() if file.name.startswith("test_")], ids=lambda file: file.name
)
def test_each_tests_docstring_is_a_full_sentence(file: Path) -> None:
    """The docstring of every test is a sentence that can be read without the test's name and its neighbours."""
    assert incomplete_docstrings(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("whoever asks", 1),
        ("the BELL", 1),
        ("benchmarks", 0),
        ("`make bench`", 0),
        ("the value of {key} is no number", 1),
        ("the value is none.", 1),
        ("it is no longer needed, and there is no other; they are no more than ten", 0),
        ("if there is none, it fails", 0),
        ("the socket is used, where it has room", 1),
        ("Where they are known, they are named", 1),
        ("status says where it listens", 0),
        ("Not until the end does it write", 1),
        ("So long it does", 1),
        ("So it waits", 0),
        ("it is not read any more", 1),
        ("wait for so many bytes", 1),
        ("so many that none fits", 0),
    ],
)
def test_rejected_words_and_phrases_are_found(text: str, count: int) -> None:
    """A word counts in any case, but neither inside another word nor in a stated exception; so does a phrase."""
    assert len(found(text)) == count


@pytest.mark.parametrize(
    ("docstring", "is_complete"),
    [
        ("`check` names the file that is not a private key.", True),
        ("And is named.", False),
        ("But it is not lost.", False),
        ("Nothing.", False),
        ("the daemon ends at once", False),
    ],
)
def test_a_docstring_that_does_not_stand_alone_is_found(docstring: str, *, is_complete: bool) -> None:
    """A docstring that is too short, continues another one, or is not a sentence is rejected."""
    names = incomplete_docstrings(f'def test_it() -> None:\n    """{docstring}"""\n')

    assert (names == []) == is_complete
