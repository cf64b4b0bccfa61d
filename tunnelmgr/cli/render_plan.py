"""What `plan` prints, made from the JSON of the API: the keys that differ, and the agents that are affected."""

import json
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.render_text import cell, count

Json = dict[str, Any]

_EFFECTS: Final = {
    "joins": ("+", "green", "joins group {after}; its evidence is sought"),
    "leaves": ("-", "red", "leaves; its tunnel is closed"),
    "moves": (
        "~",
        "yellow",
        "moves from group {before} to {after}; its tunnel is closed with all transfers and comes back",
    ),
    "loses-evidence": ("~", "yellow", "loses its evidence; its tunnel is closed until there is other evidence"),
    "reopened": ("~", "yellow", "finishes its transfers, and its tunnel is opened again"),
}
"""The mark, colour and sentence of each effect."""


def preview(facts: Json) -> RenderableType:
    """Return what `plan` prints."""
    if not (facts["changes"] or facts["agents"] or facts["remarks"]):
        return Text("nothing changes", style="dim")
    parts: list[RenderableType] = []
    if facts["changes"]:
        parts += [Text("Configuration", style="bold"), _changes(facts["changes"])]
    agents = facts["agents"]
    heading = f"Agents: {count(len(agents), 'agent')} affected" if agents else "Agents: none is affected"
    parts.append(Text(heading, style="bold"))
    if agents:
        parts.append(_agents(agents))
    parts += [Text.assemble(("note: ", "yellow"), cell(remark)) for remark in facts["remarks"]]
    return Group(*parts)


def _changes(changes: list[Json]) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(overflow="fold")
    for change in changes:
        for line in _lines(change):
            table.add_row(*line)
    return table


def _lines(change: Json) -> Iterator[tuple[Text, Text, Text]]:
    before, after = change["before"], change["after"]
    if before is None:
        yield Text("  +", style="green"), cell(change["key"]), cell(_value(after))
    elif after is None:
        yield Text("  -", style="red"), cell(change["key"]), cell(_value(before), "strike")
    else:
        yield Text("  ~", style="yellow"), cell(change["key"]), cell(f"{_value(before)} → {_value(after)}")


def _value(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return a value as TOML would have it; of a table, its keys without the name, which is known."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value(one)}" for key, one in value.items() if key != "name")
    return json.dumps(value, ensure_ascii=False)


def _agents(agents: list[Json]) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(overflow="fold")
    for one in agents:
        mark, style, sentence = _EFFECTS[one["effect"]]
        text = sentence.format(before=one["before"], after=one["after"])
        table.add_row(Text(f"  {mark}", style=style), cell(one["agent"]), cell(one["name"]), cell(text))
    return table
