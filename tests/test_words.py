"""The project's texts use plain, standard words: this test rejects the ones that readers have stumbled over."""

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
}
PATTERN = re.compile(rf"(?<![\w-])({'|'.join(WORDS)})(?![\w-])", re.IGNORECASE)
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
    return lines


def test_no_text_uses_a_rejected_word() -> None:
    """Code, tests and documents use the standard term for each rejected word."""
    rejected = {str(file.relative_to(ROOT)): found(file.read_text(encoding="utf-8")) for file in texts()}

    assert {name: lines for name, lines in rejected.items() if lines} == {}


@pytest.mark.parametrize(
    ("text", "count"), [("whoever asks", 1), ("the BELL", 1), ("benchmarks", 0), ("`make bench`", 0)]
)
def test_rejected_words_are_found_as_whole_words(text: str, count: int) -> None:
    """A word counts in any case, but neither inside another word nor in a stated exception."""
    assert len(found(text)) == count
