"""The plots of the last hour: their lines, and what stands beside them."""

import re

from tunnelmgr.core.activity import TrafficSample
from tunnelmgr.web.plots import HEIGHT, WIDTH, Plot, plots


def sample(to_agent: int, seconds: float = 60.0, requests: int = 0) -> TrafficSample:
    """Return a sample."""
    return TrafficSample(0.0, seconds, to_agent, 0, requests, 0)


def points(plot: Plot) -> list[tuple[float, float]]:
    """Return the points of a line."""
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", plot.line)]


def test_a_plot_ends_at_the_right_edge_and_stays_inside() -> None:
    """The newest sample is at the right edge, the peak near the top, nothing at the bottom."""
    plot = plots([sample(0), sample(60 * 2048), sample(60 * 1024)])[0]

    line = points(plot)
    assert line[-1][0] == WIDTH
    assert [y for _, y in line] == [HEIGHT - 1, 2, (HEIGHT + 1) / 2]
    assert (plot.latest, plot.peak) == ("1.0 KiB/s", "2.0 KiB/s")


def test_a_whole_hour_fills_the_width() -> None:
    """Sixty samples begin at the left edge; more are cut off at the left."""
    for count in (60, 61):
        line = points(plots([sample(number) for number in range(count)])[0])
        assert (line[0][0], len(line)) == (0, 60)


def test_without_a_sample_there_is_no_line() -> None:
    """Right after the start the plot says that there is no sample; one that has just started is not drawn."""
    for samples in ([], [sample(1000, seconds=0.1)]):
        plot = plots(samples)[0]
        assert (plot.line, plot.latest) == ("", "no sample yet")


def test_one_sample_is_a_line() -> None:
    """A single sample is drawn as a line over its minute."""
    assert len(points(plots([sample(60)])[0])) == 2


def test_requests_are_counted_by_minute() -> None:
    """A sample that is not complete is scaled to a minute; zero is a flat line."""
    requests, refused = plots([sample(0, seconds=30, requests=10)])[2:]

    assert requests.latest == "20/min"
    assert {y for _, y in points(refused)} == {HEIGHT - 1}
