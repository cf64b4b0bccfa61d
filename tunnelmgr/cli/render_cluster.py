"""What `status` and `members` print of a cluster, made from the JSON of the daemon's API."""

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.render_text import cell, count, marked
from tunnelmgr.control.problems import cluster_problems

Json = dict[str, Any]


def members(cluster: Json) -> RenderableType:
    """Return what `members` prints."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("MEMBER", "ZONE", "STATE", "AGENTS", "SOURCES", "REGISTRY", "HEARTBEAT", "VERSION"):
        table.add_column(name, justify="right" if name in {"AGENTS", "HEARTBEAT"} else "left", overflow="fold")
    for member in cluster["members"]:
        own = " (this one)" if member["name"] == cluster["member"] else ""
        table.add_row(
            cell(member["name"] + own),
            cell(member["zone"] or "-"),
            _state(member),
            Text(str(member["agents"])),
            cell(", ".join(member["sources"]) or "-"),
            _registry(member),
            Text(f"{member['heartbeat_s']:.1f}s ago"),
            cell(member["version"]),
        )
    return table


def _state(member: Json) -> Text:
    if not member["alive"]:
        return Text("✖ dead", style="bold red")
    return Text("◑ draining", style="cyan") if member["draining"] else Text("● alive", style="green")


def _registry(member: Json) -> Text:
    """Return what a member's registry says of the uploads of the others; an older daemon does not report it."""
    registry = member.get("registry") or {"upload": None, "sees_uploads_of": {}}
    if registry["upload"] == "no-answer":
        return Text("✖ no uploads", style="bold red")
    wrong = sorted({said for said in registry["sees_uploads_of"].values() if said != "yes"})
    if wrong:
        return Text(f"✖ {', '.join(_SAID[said] for said in wrong)}", style="bold red")
    read_only = registry["upload"] == "read-only"
    if registry["sees_uploads_of"]:
        return Text("● shared, read-only" if read_only else "● shared", style="green")
    return Text("read-only" if read_only else "-")


_SAID = {"other-storage": "other storage", "other-secret": "other secret", "no-answer": "no answer"}


def cluster_summary(cluster: Json) -> Text:
    """Return the line of `status`."""
    alive = [member for member in cluster["members"] if member["alive"]]
    own = next((member["agents"] for member in alive if member["name"] == cluster["member"]), 0)
    database = "" if cluster["database"]["ok"] else ", database NOT reachable"
    line = cell(f"{count(len(alive), 'member')} alive, {count(own, 'agent')} held by this one{database}")
    return marked(line, ok=not cluster_problems(cluster))
