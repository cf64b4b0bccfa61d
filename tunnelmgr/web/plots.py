"""The last hour of traffic as small plots: lines in SVG, made here, because the page has no script that could draw."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tunnelmgr.control.units import size
from tunnelmgr.core.activity import TrafficSample

WIDTH: Final = 240
HEIGHT: Final = 48
MINUTES: Final = 60
MIN_SECONDS: Final = 5.0
"""Seconds that a sample must cover before it is drawn: a rate over less jumps."""


class Plot(NamedTuple):
    """One plot: `line` and `area` are SVG paths, empty without a sample; `latest` and `peak` are texts."""

    name: str
    line: str
    area: str
    latest: str
    peak: str


def plots(samples: Sequence[TrafficSample]) -> list[Plot]:
    """Return the plots of the last hour; the newest sample is at the right edge."""
    drawn = [one for one in samples if one.seconds >= MIN_SECONDS]
    return [
        _plot("To agents", drawn, lambda one: one.to_agent / one.seconds, _bytes),
        _plot("From agents", drawn, lambda one: one.from_agent / one.seconds, _bytes),
        _plot("Requests", drawn, lambda one: one.requests * 60 / one.seconds, _per_minute),
        _plot("Refused", drawn, lambda one: one.refused * 60 / one.seconds, _per_minute),
    ]


def _plot(
    name: str,
    samples: Sequence[TrafficSample],
    value: Callable[[TrafficSample], float],
    text: Callable[[float], str],
) -> Plot:
    values = [max(0.0, value(one)) for one in samples][-MINUTES:]
    if not values:
        return Plot(name, "", "", "no sample yet", "")
    peak = max(values)
    points = [(WIDTH - (len(values) - 1 - at) * WIDTH / (MINUTES - 1), _height(v, peak)) for at, v in enumerate(values)]
    if len(points) == 1:
        points.insert(0, (WIDTH - WIDTH / (MINUTES - 1), points[0][1]))
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    area = f"{line}L{WIDTH} {HEIGHT}L{points[0][0]:.1f} {HEIGHT}Z"
    return Plot(name, line, area, text(values[-1]), text(peak))


def _height(value: float, peak: float) -> float:
    """Return a value's distance from the top; the peak is drawn one unit below it."""
    return HEIGHT - 1 - (HEIGHT - 3) * value / peak if peak else HEIGHT - 1.0


def _bytes(value: float) -> str:
    return f"{size(int(value))}/s"


def _per_minute(value: float) -> str:
    return f"{value:.0f}/min"
