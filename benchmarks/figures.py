"""Medians with their extremes, bars, tables, and measurements in interleaved rounds."""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

One = TypeVar("One")


@dataclass(frozen=True)
class Spread:
    """A median and the extremes."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def text(self, form: str = ".2f") -> str:
        """Return it as `median (least to most)`."""
        return f"{self.median:{form}} ({self.least:{form}} to {self.most:{form}})"


@dataclass(frozen=True)
class Bar:
    """A target: `value` must be at least, or at most, the limit."""

    what: str
    value: float
    limit: float
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether the value meets the limit."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        """Return a line for the terminal."""
        sign = "≥" if self.least else "≤"
        return f"{'met   ' if self.met else 'MISSED'}  {self.what}: {self.value:.3g} (bar {sign} {self.limit:g})"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that reads well in a terminal and in Markdown."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def publish(  # noqa: PLR0913, PLR0917 - these are the parts of a report
    name: str,
    machine: str,
    text: str,
    bars: Sequence[Bar],
    data: object,
    file: Path | None,
) -> None:
    """Print the results, and write them as JSON if a file is given."""
    print(f"{name}: {machine}\n\n{text}\n")
    for bar in bars:
        print(bar)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "name": name,
            "machine": machine,
            "bars": [asdict(bar) | {"met": bar.met} for bar in bars],
            "data": data,
        }
        file.write_text(json.dumps(kept, indent=1, default=asdict) + "\n")


def interleaved(ones: Sequence[One], rounds: int, measure: Callable[[One, int], None], seconds: float = 0.0) -> None:
    """Measure each one in turn, for at least `rounds` rounds and `seconds` seconds.

    Every other round runs in reverse order.
    """
    deadline = time.monotonic() + seconds
    for number in itertools.count():
        if number >= rounds and time.monotonic() >= deadline:
            return
        for one in ones if number % 2 else reversed(ones):
            measure(one, number)
