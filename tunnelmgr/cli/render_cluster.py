"""What `status` and `members` print of a cluster, made from the JSON of the daemon's API."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.render_text import cell, count, marked

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


def cluster_problems(cluster: Json | None) -> list[str]:
    """Return every problem of a cluster as a sentence."""
    if not cluster:
        return []
    found = []
    if not cluster["database"]["ok"]:
        found.append(f"the database does not answer, so that no agent is taken over: {cluster['database']['error']}")
    for member in cluster["members"]:
        name = member["name"]
        if not member["alive"]:
            found.append(f"member {name} is dead, last heartbeat {member['heartbeat_s']:.0f}s ago")
        elif not member["same_rules"]:
            found.append(
                f"member {name} has other sources, groups, forwards or authorities than this one; "
                "install the same configuration on both, and run: tunnelmgr reload"
            )
    return found + list(_registry_problems(cluster))


def _registry_problems(cluster: Json) -> Iterator[str]:
    """Yield what the members have found out about their registries, each pair of members once."""
    named = set()
    for member in cluster["members"]:
        registry, name = member.get("registry"), member["name"]
        if not registry:
            continue
        if registry["upload"] == "no-answer":
            yield f"the registry of member {name} begins no upload: {registry['error']}"
            continue
        for writer, said in registry["sees_uploads_of"].items():
            pair = (said, *sorted((name, writer)))
            if said == "yes" or pair in named:
                continue
            if said != "no-answer":
                named.add(pair)
            yield f"the registry of member {name} {_PROBLEMS[said].format(writer=writer, **registry)}"


_PROBLEMS = {
    "other-storage": (
        "does not have the uploads of member {writer}: another storage; pulls and pushes depend on the member that "
        "holds the agent. Configure the same storage on both"
    ),
    "other-secret": (
        "rejects the uploads of member {writer}: another http.secret; pushes break when an agent changes its member. "
        "Set the same http.secret on both"
    ),
    "no-answer": "did not answer when asked for an upload of member {writer}: {error}",
}
