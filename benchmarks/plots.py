"""Draws the JSON of the benchmarks: one SVG per benchmark, with a description of the machine.

python benchmarks/plots.py FOLDER_OF_JSON FOLDER_OF_PLOTS     # needs matplotlib: `make bench` installs it
"""

import json
import operator
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from figures import percentile
from matplotlib import pyplot as plt

COLOURS = {"ours": "#1b6ca8", "ours-gate": "#69a9d4", "ssh": "#8c8c8c", "ssh-gcm": "#b5b5b5", "autossh": "#6e5a7e"}
COLOURS |= {"with cache": "#1b6ca8", "without cache": "#8c8c8c"}
COLOURS |= {"asyncssh": "#c98b3c", "asyncssh-gcm": "#e0b77d", "autossh and ssh": "#6e5a7e"}
NAMES = {"ours": "tunnelmgr", "ours-gate": "tunnelmgr, gate", "ssh": "ssh -R", "ssh-gcm": "ssh -R, AES-GCM"}
Rows = list[dict[str, Any]]


def throughput(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - matplotlib has no types
    """Draw MB/s as a multiple of `ssh -R`'s, group by group."""

    def place(row: dict[str, Any]) -> str:
        line = "registry" if row["part"] == "registry" else row["line"].replace(", ", "\n")
        return f"{line}\n{row['connections']} conn."

    grouped(axes, multiples(rows, "mb_per_s", place), "MB/s, as a multiple of ssh -R (log)")
    axes.set_yscale("log", base=2)
    axes.axhline(1, color="#444444", linewidth=0.6)


def scale(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw the memory of each tunnel."""
    shown = [row for row in rows if row["tunnels"]]
    labels = [f"{NAMES.get(row['who'], row['who'])}\n{row['tunnels']:,}" for row in shown]
    heights = [row["resident"] / row["tunnels"] / 1e3 for row in shown]
    bars(axes, labels, heights, [row["who"] for row in shown], "resident KB per tunnel (log)")
    axes.set_yscale("log")


def storm(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw the time until the first, half and all are up."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for what in ("first", "half", "all"):
            groups.setdefault(what, {}).setdefault(row["who"], []).append(row[what])
    grouped(axes, groups, "seconds until up (log)")
    axes.set_yscale("log")


def reconnect(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw for how long requests fail."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row["what"], {}).setdefault(row["who"], []).append(row["seconds"])
    grouped(axes, groups, "seconds without the registry (log)")
    axes.set_yscale("log")


def gate(rows: Any, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw the speed through the gate as a share of the raw relay's."""
    groups = {
        what: {"ours-gate": list(map(operator.truediv, series["gate"], series["raw"]))} for what, series in rows.items()
    }
    grouped(axes, groups, "through the gate, as a share of raw")
    axes.axhline(1, color="#444444", linewidth=0.6)


def manifests(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw requests per second as a multiple of `ssh -R`'s, for a manifest by its tag."""
    by_tag = [row for row in rows if row["asked_by"] == "tag"]
    groups = multiples(by_tag, "per_second", lambda row: f"{row['connections']} conn.")
    grouped(axes, groups, "requests per second, as a multiple of ssh -R")
    axes.axhline(1, color="#444444", linewidth=0.6)


def cache(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw the seconds until a fleet has an image, without and with the cache."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in sorted(rows, key=lambda row: (row["storage"] != "S3", row["cached"])):
        place = "registry on S3" if row["storage"] == "S3" else "registry on disk"
        way = "with cache" if row["cached"] else "without cache"
        groups.setdefault(place, {}).setdefault(way, []).append(row["seconds"])
    grouped(axes, groups, "seconds until all have the image")


def fairness(rows: Rows, axes: Any) -> None:  # noqa: ANN401 - as above
    """Draw the p99 latency, without and with the bulk pull."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        place = f"{row['what']}\n{'beside a bulk pull' if row['bulk'] else 'alone'}"
        groups.setdefault(place, {}).setdefault(row["who"], []).append(percentile(row["milliseconds"], 0.99))
    grouped(axes, groups, "p99 latency, ms")


PLOTS: dict[str, Callable[[Any, Any], None]] = {
    "gate": gate,
    "manifests": manifests,
    "throughput": throughput,
    "scale": scale,
    "storm": storm,
    "reconnect": reconnect,
    "fairness": fairness,
    "cache": cache,
}


def multiples(rows: Rows, what: str, place: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, list[float]]]:
    """Return figures as multiples of `ssh -R`'s at the same place in the same round, by place and kind."""
    base = {(place(row), row["number"]): row[what] for row in rows if row["kind"] == "ssh"}
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        ratio = row[what] / base[place(row), row["number"]]
        groups.setdefault(place(row), {}).setdefault(row["kind"], []).append(ratio)
    return groups


def grouped(axes: Any, groups: dict[str, dict[str, list[float]]], what: str) -> None:  # noqa: ANN401 - as above
    """Draw a bar with its extremes for each kind in each group."""
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    width = 0.8 / len(kinds)
    for at, kind in enumerate(kinds):
        found = [(place, group[kind]) for place, group in enumerate(groups.values()) if kind in group]
        heights = [statistics.median(values) for _, values in found]
        spread = [
            [height - min(values) for height, (_, values) in zip(heights, found, strict=True)],
            [max(values) - height for height, (_, values) in zip(heights, found, strict=True)],
        ]
        places = [place + (at - (len(kinds) - 1) / 2) * width for place, _ in found]
        style = {"color": COLOURS.get(kind), "label": NAMES.get(kind, kind), "error_kw": {"linewidth": 0.6}}
        axes.bar(places, heights, width * 0.92, yerr=spread, **style)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=7)
    axes.set_ylabel(what, fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(fontsize=7, frameon=False, ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1))


def bars(axes: Any, labels: Sequence[str], heights: Sequence[float], kinds: Sequence[str], what: str) -> None:  # noqa: ANN401
    """Draw one bar for each label."""
    axes.bar(range(len(labels)), heights, 0.7, color=[COLOURS.get(kind) for kind in kinds])
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel(what, fontsize=8)


def main() -> int:
    """Draw every result that exists."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "tunnelmgr"  # the same figures make the same file
    for name, draw in PLOTS.items():
        if not (source / f"{name}.json").exists():
            continue
        kept = json.loads((source / f"{name}.json").read_text())
        figure, axes = plt.subplots(figsize=(8.5, 3.6))
        draw(kept["data"], axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.text(0.99, 0.01, kept["machine"], ha="right", fontsize=6, color="#777777")
        figure.tight_layout()
        figure.savefig(target / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(target / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
