"""What people see: JSON in the API's shapes becomes tables; nothing here asks or decides."""

from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

PHASE_STYLES = {
    "up": "green",
    "connecting": "cyan",
    "draining": "cyan",
    "awaiting-identity": "yellow",
    "down": "yellow",
    "quarantined": "bold red",
}
_MARKS = {"up": "●", "connecting": "◐", "draining": "◑", "awaiting-identity": "○", "down": "○", "quarantined": "✖"}


def problems(facts: Json, agents: list[Json]) -> list[str]:
    """Return what is wrong, in words; empty when all is as it should be."""
    found = []
    registry = facts["registry"]
    if not registry["reachable"]:
        found.append(f"the registry does not answer: {registry['error'] or 'not asked yet'}")
    if registry["loopback_only"] is False:
        found.append("the registry listens beyond loopback: anybody who reaches this machine can pull")
    if not facts["state"]["ok"]:
        found.append(f"the state cannot be written: {facts['state']['error']}")
    found += [
        f"source {source['name']}: {source['error'] or 'no answer yet'}"
        for source in facts["sources"]
        if not source["ok"]
    ]
    for agent in agents:
        if agent["present"] and agent["phase"] != "up":
            why = agent["message"] or agent["error"] or ""
            found.append(f"{agent['agent']} is {agent['phase']}{': ' if why else ''}{why}")
    return found


def status(facts: Json, agents: list[Json]) -> RenderableType:
    """Return `status` as a short sheet, problems last."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    state = " (draining)" if facts["draining"] else ""
    sheet.add_row(
        "controller", f"{facts['controller']}, tunnelmgr {facts['version']}, for {span(facts['uptime_s'])}{state}"
    )
    phases = ", ".join(f"{count} {phase}" for phase, count in facts["phases"].items() if count)
    sheet.add_row("agents", f"{facts['agents']}" + (f": {phases}" if phases else ""))
    for source in facts["sources"]:
        when = f", answered {age(source['last_success'])} ago" if source["last_success"] else ""
        line = Text(f"{source['name']}  {source['agents']} agents{when}")
        sheet.add_row("source", _marked(line, ok=source["ok"]))
    registry = facts["registry"]
    where = {True: "on loopback only", False: "beyond loopback", None: "where, cannot be told from here"}
    said = f"answers, listens {where[registry['loopback_only']]}" if registry["reachable"] else "does not answer"
    sheet.add_row("registry", _marked(Text(said), ok=registry["reachable"] and registry["loopback_only"] is not False))
    sheet.add_row("state", _marked(Text("written" if facts["state"]["ok"] else "NOT written"), ok=facts["state"]["ok"]))
    wrong = [Text.assemble(("✖ ", "red"), problem) for problem in problems(facts, agents)]
    return Group(sheet, *([Text(""), *wrong] if wrong else []))


def agents(listed: list[Json]) -> RenderableType:
    """Return the table of `list`."""
    if not listed:
        return Text("no agents", style="dim")
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("AGENT", "NAME", "GROUP", "PHASE", "FOR", "TRUST", "ADDRESS"):
        table.add_column(name, no_wrap=True)
    for name in ("CHAN", "PULLED", "PUSHED", "PROBE"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("WHY", overflow="fold", max_width=60)
    for agent in listed:
        phase = agent["phase"] if agent["present"] else "gone"
        style = PHASE_STYLES.get(phase, "dim")
        retry = f" (next try in {until(agent['retry_at'])})" if agent["retry_at"] else ""
        table.add_row(
            agent["agent"],
            agent["name"],
            agent["group"],
            Text(f"{_MARKS.get(phase, '·')} {phase}", style=style),
            age(agent["since"]),
            agent["trust"] or "-",
            agent["address"] or "-",
            str(agent["channels"]),
            size(agent["bytes_to_agent"]),
            size(agent["bytes_from_agent"]),
            "-" if agent["probe_ms"] is None or phase != "up" else f"{agent['probe_ms']:.0f} ms",
            Text((agent["message"] or agent["error"] or "") + retry, style="dim"),
        )
    return table


def agent(facts: Json) -> RenderableType:
    """Return `show`: what is known, then the story."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    phase = facts["phase"] if facts["present"] else "gone"
    sheet.add_row("agent", f"{facts['agent']}  ({facts['name']})")
    sheet.add_row("phase", Text(f"{phase}, for {age(facts['since'])}", style=PHASE_STYLES.get(phase, "dim")))
    if facts["message"] or facts["error"]:
        sheet.add_row("why", Text(facts["message"] or facts["error"]))
    if facts["retry_at"]:
        sheet.add_row("next try", f"in {until(facts['retry_at'])}, after {facts['failures']} failures")
    sheet.add_row("group", f"{facts['group']}, from source {facts['source']}")
    sheet.add_row("address", f"{facts['address']} port {facts['port']}")
    sheet.add_row("trust", f"{facts['trust'] or 'no evidence yet'}  {' '.join(facts['fingerprints'])}")
    for forward in facts["forwards"]:
        held = ", ".join(forward["held"]) or "not held"
        sheet.add_row("forward", f"{forward['name']}: {held} → {forward['target']}")
    sheet.add_row(
        "traffic",
        f"{facts['channels']} channels, {size(facts['bytes_to_agent'])} to the agent, "
        f"{size(facts['bytes_from_agent'])} from it",
    )
    story = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    story.add_column("TIME (UTC)", no_wrap=True)
    story.add_column("STEP", no_wrap=True)
    story.add_column("WHAT", overflow="fold")
    for moment in facts["story"]:
        story.add_row(moment["at"][:23].replace("T", " "), moment["step"], Text(moment["detail"]))
    return Group(sheet, Text(""), story)


def checks(findings: list[Json]) -> RenderableType:
    """Return the findings of `check`."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(no_wrap=True)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    marks = {"ok": Text("✔", style="green"), "failed": Text("✖", style="red"), "note": Text("•", style="yellow")}
    for finding in findings:
        sheet.add_row(marks[finding["result"]], finding["check"], Text(finding["message"]))
    return sheet


def age(since: str | None) -> str:
    """Return how long ago a timestamp of the API was."""
    return "-" if since is None else span(max(0.0, (datetime.now(UTC) - _moment(since)).total_seconds()))


def until(then: str) -> str:
    """Return how far in the future a timestamp of the API is."""
    return span(max(0.0, (_moment(then) - datetime.now(UTC)).total_seconds()))


def span(seconds: float) -> str:
    """Return a span of time in its two largest units at most."""
    whole = int(seconds)
    for unit, length, inner, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part:02d}{inner}"
    return f"{whole}s"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _marked(line: Text, *, ok: bool) -> Text:
    return Text.assemble(("● ", "green") if ok else ("● ", "red"), line)
