"""Tables and summaries for people, made from the JSON of the daemon's API."""

from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunnelmgr.cli.render_cluster import cluster_summary
from tunnelmgr.cli.render_text import cell, count, marked
from tunnelmgr.control.problems import controller_problems
from tunnelmgr.control.units import duration, size
from tunnelmgr.core.cures import MARKS
from tunnelmgr.core.world import RETRIED

Json = dict[str, Any]

FOLDED = RETRIED | {"waiting"}
"""The steps of attempts that fail, and of a wait for evidence: the repeated ones are shown once."""

PHASE_STYLES = {
    "up": "green",
    "connecting": "cyan",
    "draining": "cyan",
    "awaiting-identity": "yellow",
    "down": "yellow",
    "quarantined": "bold red",
}

_EVENT_QUEUE = {None: "", True: ", events received", False: ", event queue FAILED"}


def problems(facts: Json, agents: list[Json]) -> list[str]:
    """Return every problem as a sentence; empty if there is none."""
    found = controller_problems(facts)
    for agent in agents:
        if agent["present"] and agent["phase"] != "up":
            why = agent["message"] or agent["error"] or ""
            found.append(f"{agent['agent']} is {agent['phase']}{': ' if why else ''}{why}")
    return found


def status(facts: Json, agents: list[Json]) -> RenderableType:
    """Return what `status` prints, problems last."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    state = " (draining)" if facts["draining"] else ""
    life = f"{facts['controller']}, tunnelmgr {facts['version']}, up {duration(facts['uptime_s'])}{state}"
    sheet.add_row("controller", cell(life))
    phases = ", ".join(f"{number} {phase}" for phase, number in facts["phases"].items() if number)
    sheet.add_row("agents", cell(f"{facts['agents']}" + (f": {phases}" if phases else "")))
    trusted = ", ".join(f"{number} by {method}" for method, number in sorted(facts["trust"].items()))
    if trusted:
        sheet.add_row("trust", cell(trusted))
    for source in facts["sources"]:
        events = source["events"]["ok"] if source["events"] else None
        when = f", answered {age(source['last_success'])} ago" if source["last_success"] else ""
        line = cell(f"{source['name']}, {count(source['agents'], 'agent')}{when}{_EVENT_QUEUE[events]}")
        sheet.add_row("source", marked(line, ok=source["ok"] and events is not False))
    if facts.get("cluster"):
        sheet.add_row("cluster", cluster_summary(facts["cluster"]))
    sheet.add_row("registry", _registry(facts["registry"]))
    if facts.get("cache"):
        sheet.add_row("cache", _cache(facts["cache"]))
    for limit in facts.get("limits", ()):
        if limit["waiting"]:
            waiting = f"{count(limit['waiting'], 'transfer')} of group {limit['group']} within {limit['limit']}"
            sheet.add_row("waiting", cell(waiting))
    sheet.add_row("state", marked(Text("written" if facts["state"]["ok"] else "NOT written"), ok=facts["state"]["ok"]))
    if tracing := facts.get("tracing"):
        why = f": {tracing['error']}" if tracing["error"] else ""
        lost = f"{tracing['failed'] + tracing['dropped']} lost{why}"
        spans = cell(f"{tracing['exported']} spans exported, {lost}")
        sheet.add_row("tracing", marked(spans, ok=tracing["ok"]))
    if not facts["fast_path"]["active"]:
        sheet.add_row("fast path", Text.assemble(("● ", "yellow"), cell(f"off: {facts['fast_path']['reason']}")))
    wrong = Table.grid(padding=(0, 1))
    for problem in problems(facts, agents):
        wrong.add_row(Text("✖", style="red"), cell(problem))
    return Group(sheet, Text(""), wrong) if wrong.rows else sheet


def _pushes(forward: Json) -> str:
    """Return where a forward's pushes go, if not to its target; an older daemon does not report it."""
    if forward.get("upstream") == "proxy":
        return ", a pull-through cache" + (f" of {forward['namespace']}" if forward["namespace"] else "")
    if forward.get("push_target"):
        return f", pushes → {forward['push_target']}"
    return f", no pushes: use {forward['writer']}" if forward.get("writer") else ""


def _cache(cache: Json) -> Text:
    served = f"{size(cache['bytes'])} served since the start, {cache['hits']} hits, {cache['misses']} misses"
    return cell(f"{size(cache['used'])} of {size(cache['size'])}, {count(cache['blobs'], 'blob')}; {served}")


def _registry(registry: Json) -> Text:
    listens = {True: "on loopback only", False: "beyond loopback", None: "in another network (not checked)"}
    text = f"answers, listens {listens[registry['loopback_only']]}" if registry["reachable"] else "cannot be used"
    # An older daemon does not report the time.
    checked = f", checked {age(registry['checked_at'])} ago" if registry.get("checked_at") else ""
    return marked(Text(text + checked), ok=registry["reachable"] and registry["loopback_only"] is not False)


def agents(listed: list[Json], width: int) -> RenderableType:
    """Return the table of `list`; if `width` columns are too few, the least important table columns are left out."""
    if not listed:
        return Text("no agents", style="dim")
    rows = [_row(agent) for agent in listed]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown = _fitting(rows, width)
    for name in shown:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name != _LAST, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


_NUMBERS = ("CHAN", "PULLED", "PUSHED", "PROBE")
_LAST = "WHY"
_LEAST_FIRST = ("PUSHED", "PROBE", "CHAN", "PULLED", "ADDRESS", "TRUST", "NAME", "GROUP", "FOR", "HOLDER")
_WHY_ROOM = 32
"""Terminal columns in which a reason is readable; it wraps within them."""
_GAP = 3
"""Terminal columns between two table columns; the edges of the table take as many."""


def _row(agent: Json) -> dict[str, Text]:
    """Return an agent's cells by table column, in order."""
    phase = agent["phase"] if agent["present"] else "gone"
    retry = f"next attempt in {until(agent['retry_at'])}" if agent["retry_at"] else ""
    why = "; ".join(part for part in (agent["message"] or agent["error"], retry) if part)
    return {
        "AGENT": cell(agent["agent"]),
        "NAME": cell(agent["name"]),
        "GROUP": cell(agent["group"]),
        "HOLDER": cell(agent.get("holder") or "-"),
        "PHASE": cell(f"{MARKS.get(phase, MARKS['gone'])} {phase}", PHASE_STYLES.get(phase, "dim")),
        "FOR": Text(age(agent["since"])),
        "TRUST": cell(agent["trust"] or "-"),
        "ADDRESS": cell(agent["address"] or "-"),
        "CHAN": Text(str(agent["channels"])),
        "PULLED": Text(size(agent["bytes_to_agent"])),
        "PUSHED": Text(size(agent["bytes_from_agent"])),
        "PROBE": Text("-" if agent["probe_ms"] is None or phase != "up" else f"{agent['probe_ms']:.0f} ms"),
        _LAST: cell(why, "dim"),
    }


def _fitting(rows: list[dict[str, Text]], width: int) -> list[str]:
    """Return the table columns that fit, without those that carry no information."""
    needed = {name: max(len(name), *(row[name].cell_len for row in rows)) for name in rows[0]}
    if all(row["AGENT"].plain.endswith(f":{row['NAME'].plain}") for row in rows):
        del needed["NAME"]
    if all(row["HOLDER"].plain == "-" for row in rows):
        del needed["HOLDER"]
    if not any(row[_LAST].plain for row in rows):
        del needed[_LAST]
    else:
        needed[_LAST] = min(needed[_LAST], _WHY_ROOM)
    for least in _LEAST_FIRST:
        if sum(needed.values()) + _GAP * len(needed) <= width:
            break
        needed.pop(least, None)
    return list(needed)


def agent(facts: Json) -> RenderableType:
    """Return what `show` prints, with the history last."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="dim", no_wrap=True)
    sheet.add_column(overflow="fold")
    phase = facts["phase"] if facts["present"] else "gone"
    sheet.add_row("agent", cell(f"{facts['agent']}  ({facts['name']})"))
    sheet.add_row("phase", cell(f"{phase}, for {age(facts['since'])}", PHASE_STYLES.get(phase, "dim")))
    if facts["message"] or facts["error"]:
        sheet.add_row("why", cell(facts["message"] or facts["error"]))
    if facts["retry_at"]:
        failures = count(facts["failures"], "failure")
        sheet.add_row("next attempt", cell(f"in {until(facts['retry_at'])}, after {failures}"))
    sheet.add_row("group", cell(f"{facts['group']}, from source {facts['source']}"))
    sheet.add_row("address", cell(f"{facts['address']} port {facts['port']}"))
    method = facts["trust"] or "no evidence yet"
    evidence = f" ({facts['evidence']})" if facts["evidence"] else ""
    sheet.add_row("trust", cell(f"{method}{evidence}  {' '.join(facts['fingerprints'])}"))
    if facts["login_key"]:
        sheet.add_row("our key", cell(facts["login_key"]))
    for forward in facts["forwards"]:
        held = ", ".join(forward["held"]) or "not held"
        sheet.add_row("forward", cell(f"{forward['name']}: {held} → {forward['target']}{_pushes(forward)}"))
    traffic = (
        f"{count(facts['channels'], 'channel')}, {size(facts['bytes_to_agent'])} to the agent, "
        f"{size(facts['bytes_from_agent'])} from it"
    )
    sheet.add_row("traffic", cell(traffic))
    history = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    history.add_column("TIME (UTC)", no_wrap=True)
    history.add_column("STEP", no_wrap=True)
    history.add_column("WHAT", overflow="fold")
    for entry in _folded(facts["history"]):
        history.add_row(cell(_clock(entry["time"])), cell(entry["step"]), cell(_what(entry)))
    return Group(sheet, Text(""), history)


def _folded(history: list[Json]) -> list[Json]:
    """Return the history with the repeated steps of failing attempts as one entry each, at the time of the last.

    The daemon folds a step that directly repeats; here also those that alternate, such as two reasons of failure. Any
    other step ends the run, so that nothing is folded across it.
    """
    folded: list[Json] = []
    run: dict[tuple[str, str], Json] = {}
    for entry in history:
        if entry["step"] not in FOLDED:
            folded += [*run.values(), entry]
            run = {}
            continue
        key = (entry["step"], entry["detail"])
        before = run.pop(key, None)
        run[key] = entry if before is None else _merged(before, entry)
    return [*folded, *run.values()]


def _merged(before: Json, entry: Json) -> Json:
    first = before.get("since") or before["time"]
    return {**entry, "count": before.get("count", 1) + entry.get("count", 1), "since": first}


def _what(entry: Json) -> str:
    """Return what happened, which user asked for it, and how often it happened."""
    what = str(entry["detail"])
    if entry.get("uid") is not None:
        what += f" (by uid {entry['uid']})"
    if entry.get("count", 1) > 1:
        what += f" (x{entry['count']} since {_clock(entry['since'])})"
    return what


def _clock(timestamp: str) -> str:
    """Return a timestamp of the API in the form that people read."""
    return timestamp[:23].replace("T", " ")


def checks(findings: list[Json]) -> RenderableType:
    """Return the findings of `check`."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(no_wrap=True)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    marks = {"ok": Text("✔", style="green"), "failed": Text("✖", style="red"), "note": Text("•", style="yellow")}
    for finding in findings:
        sheet.add_row(marks[finding["result"]], cell(finding["check"]), cell(finding["message"]))
    return sheet


def age(since: str | None) -> str:
    """Return how long ago a timestamp of the API was."""
    return "-" if since is None else duration(max(0.0, (datetime.now(UTC) - _moment(since)).total_seconds()))


def until(then: str) -> str:
    """Return how far in the future a timestamp of the API is."""
    return duration(max(0.0, (_moment(then) - datetime.now(UTC)).total_seconds()))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
