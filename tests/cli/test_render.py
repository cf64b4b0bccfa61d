"""What people see, at the widths that they have."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.control.fake_daemon import KEY, FakeDaemon, fleet, record, up, world
from tunnelmgr.cli import render
from tunnelmgr.control.views import agent_view, agents_view, history_view, status_view
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.health import FastPathHealth, RegistryHealth
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Connecting
from tunnelmgr.core.world import HistoryEntry, Quarantine

MISMATCH = (
    "the machine at 10.20.30.40 port 22 holds another host key than console says "
    "(SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU): another machine has this address, "
    "or the agent was rebuilt; look, then `tunnelmgr release`"
)


def lines(sheet: RenderableType, width: int = 200) -> list[str]:
    """Return what is printed at a width, without colours."""
    console = Console(width=width, color_system=None)
    with console.capture() as printed:
        console.print(sheet)
    return [line.rstrip() for line in printed.get().splitlines()]


def ec2() -> list[dict[str, Any]]:
    """Return a list with an agent whose every cell is long."""
    agent = Agent(
        AgentId("ec2:i-0abc123def456789a"), "1", "jenkins-ec2", "builders", "jenkins-spot-7", ("10.20.30.40",), 22
    )
    one = replace(record("x"), agent=agent, quarantine=Quarantine(1.7e9, "host-key-mismatch", MISMATCH))
    return agents_view(world((one, None), (record("builder-1"), up())), {})


def listed() -> list[dict[str, Any]]:
    """Return a list with an agent in each phase."""
    return agents_view(fleet(), {}, departed=True)


# --- list ---


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_a_table_fits_its_terminal_and_cuts_nothing(width: int) -> None:
    """No `…`, no line too long; the agent, its phase and the reason are there at any width."""
    for agents in (ec2(), listed()):
        printed = lines(render.agents(agents, width), width)

        assert max(map(len, printed)) <= width
        assert "…" not in "".join(printed)
        assert all(name in printed[1] for name in ("AGENT", "PHASE", "WHY"))
        assert all(any(agent["agent"] in line for line in printed) for agent in agents)


def test_a_reason_is_readable_on_a_narrow_terminal() -> None:
    """Its words stay whole: the column keeps enough room for them."""
    printed = " ".join(lines(render.agents(ec2(), 80), 80)).split()

    assert all(word in printed for word in ("another", "machine", "address,", "rebuilt;"))


def test_columns_go_by_their_weight() -> None:
    """The wider, the more; numbers go first, the agent's group and age last."""
    heads = [lines(render.agents(ec2(), width), width)[1].split() for width in (80, 120, 160, 300)]

    assert heads[0] == ["AGENT", "PHASE", "WHY"]
    assert {"GROUP", "FOR"} <= set(heads[1])
    assert "CHAN" not in heads[1]
    assert heads[3] == [
        "AGENT", "NAME", "GROUP", "PHASE", "FOR", "TRUST", "ADDRESS", "CHAN", "PULLED", "PUSHED", "PROBE", "WHY",
    ]  # fmt: skip
    assert len(heads[0]) < len(heads[1]) <= len(heads[2]) < len(heads[3])


def test_columns_that_would_say_nothing_are_left_out() -> None:
    """A name that the id ends with already, and reasons where there are none."""
    head = lines(render.agents(agents_view(world((record("builder-1"), up())), {}), 200))[1].split()

    assert "NAME" not in head
    assert "WHY" not in head


def test_a_row_tells_the_phase_the_reason_and_the_next_try() -> None:
    """One that left is `gone`, whatever it was."""
    printed = lines(render.agents(listed(), 4096), 4096)
    row = {line.split()[0]: line for line in printed if line.strip().startswith("static:")}

    assert "● up" in row["static:builder-1"]
    assert "1 ms" in row["static:builder-1"]
    assert "Connection refused; next attempt in" in row["static:builder-2"]
    assert "✖ quarantined" in row["static:builder-3"]
    assert "○ awaiting-identity" in row["static:builder-4"]
    assert "· gone" in row["static:other-1"]


def test_what_an_agent_is_called_is_text_and_no_markup() -> None:
    """A name with brackets neither vanishes nor colours anything."""
    agents = listed()
    agents[0] |= {"name": "[bold red]x[/]", "message": "[link=evil]"}
    printed = "".join(lines(render.agents(agents, 4096), 4096))

    assert "[bold red]x[/]" in printed
    assert "[link=evil]" in printed


def test_an_empty_list_says_so() -> None:
    """Instead of a table without rows."""
    assert lines(render.agents([], 80)) == ["no agents"]


# --- status ---


def facts(daemon: FakeDaemon) -> dict[str, Any]:
    """Return the daemon's status."""
    return status_view(daemon.world, daemon.health())


def test_a_source_that_fails_and_one_that_never_answered_are_problems() -> None:
    """With its error, or in plain words."""
    view = facts(FakeDaemon())
    view["sources"] = [
        {"name": "a", "ok": False, "last_success": None, "error": "throttled", "agents": 0, "events": None},
        {"name": "b", "ok": False, "last_success": None, "error": None, "agents": 1, "events": None},
    ]

    assert render.problems(view, []) == ["source a: throttled", "source b: no answer yet"]
    assert any("b, 1 agent" in line for line in lines(render.status(view, [])))


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        (RegistryHealth(reachable=True, loopback_only=True), "answers, listens on loopback only"),
        (RegistryHealth(reachable=True, loopback_only=False), "answers, listens beyond loopback"),
        (RegistryHealth(reachable=True, loopback_only=None), "listens in another network (not checked)"),
        (RegistryHealth(reachable=False, loopback_only=None), "does not answer"),
    ],
)
def test_the_registry_is_told_in_words(registry: RegistryHealth, words: str) -> None:
    """What cannot be seen is not called well."""
    daemon = FakeDaemon(world=world((record("builder-1"), up())), registry=registry)

    assert any(words in line for line in lines(render.status(facts(daemon), [])))


def test_the_age_of_the_registrys_view_is_shown() -> None:
    """The daemon checks the registry every few seconds, and `status` shows how long ago it did."""
    checked_at = datetime.now(UTC).timestamp() - 7
    daemon = FakeDaemon(registry=RegistryHealth(True, True, checked_at=checked_at))

    assert any(
        re.search(r"on loopback only, checked [78]s ago$", line) for line in lines(render.status(facts(daemon), []))
    )


def test_a_fast_path_that_is_off_is_told_with_its_reason_and_is_no_problem() -> None:
    """Everything works, more slowly; while it is on, nothing is said of it."""
    off = facts(FakeDaemon(fast_path=FastPathHealth(active=False, reason="Channel._send_window is missing")))

    assert any("off: Channel._send_window is missing" in line for line in lines(render.status(off, [])))
    assert render.problems(off, []) == render.problems(facts(FakeDaemon()), [])
    assert not any("fast path" in line for line in lines(render.status(facts(FakeDaemon()), [])))


def test_problems_hang_under_their_mark() -> None:
    """A long one wraps beside it, so that each is seen as one."""
    printed = lines(render.status(facts(FakeDaemon()), ec2()), 80)
    at = next(number for number, line in enumerate(printed) if line.startswith("✖ ec2:"))

    assert printed[at + 1].startswith("  ")
    assert max(map(len, printed)) <= 80


# --- show ---


def test_an_agents_sheet_tells_all_that_is_known() -> None:
    """Held addresses, evidence, failures, and the history below."""
    one = record("builder-1")
    printed = lines(render.agent(agent_view(one, up(), fleet().rules.forwards, None) | {"history": history_view(one)}))
    text = "\n".join(printed)

    assert "registry: 127.0.0.1:5000, [::1]:5000 → 127.0.0.1:5000" in text
    assert "pinned  SHA256:" in text
    assert "0 channels, 0 B to the agent" in text
    assert text.index("seen") < text.index("evidence")


def test_an_agent_that_failed_shows_when_it_is_tried_next() -> None:
    """After how many failures."""
    view = next(view for view in listed() if view["name"] == "builder-2")
    soon = (datetime.now(UTC) + timedelta(seconds=90)).isoformat().replace("+00:00", "Z")
    text = "\n".join(lines(render.agent(view | {"history": [], "retry_at": soon, "failures": 1})))

    assert "in 1m" in text
    assert "after 1 failure" in text
    assert "not held" in text


# --- check, and small things ---


def test_findings_have_a_mark_each() -> None:
    """Well, wrong and worth knowing."""
    found = [
        {"check": "ssh key", "result": "ok", "message": "fine"},
        {"check": "registry", "result": "failed", "message": "away"},
        {"check": "trust", "result": "note", "message": "[sic]"},
    ]

    assert lines(render.checks(found)) == ["✔  ssh key   fine", "✖  registry  away", "•  trust     [sic]"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "1d01h")],
)
def test_a_span_has_two_units_at_most(seconds: float, text: str) -> None:
    """The largest ones."""
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"), (2 << 40, "2.0 TiB")],
)
def test_a_size_is_in_binary_units(octets: int, text: str) -> None:
    """And says so."""
    assert render.size(octets) == text


def test_times_in_the_past_and_none_at_all_are_no_trouble() -> None:
    """Clocks differ by a little."""
    assert render.age(None) == "-"
    assert render.until("2020-01-01T00:00:00.000Z") == "0s"
    assert render.age("2999-01-01T00:00:00.000Z") == "0s"


# --- what others wrote ---

EVIL = "x[/y][bold]\x1b[31m\x9b2J\u202e\u2028\n\x07z"
"""It ends a markup that never began, begins one, colours, clears, turns the writing, and ends the line twice."""
SHOWN = "x[/y][bold]?[31m?2J????z"


def hostile() -> dict[str, Any]:
    """Return one agent, every text of which somebody else wrote."""
    agent = Agent(AgentId(f"ec2:{EVIL}"), "1", EVIL, EVIL, EVIL, (EVIL,))
    trust = HostTrust(Method.CONSOLE, (KEY,), EVIL)
    mark = Quarantine(1.7e9, EVIL, EVIL)
    one = replace(record("x"), agent=agent, trust=trust, quarantine=mark, history=(HistoryEntry(1.7e9, EVIL, EVIL),))
    status = Connecting(1.7e9, 1, up().spec, error=EVIL, message=EVIL, login_key=EVIL)
    view = agent_view(one, status, world().rules.forwards, None)
    return {**view, "history": history_view(one)}


def test_what_others_wrote_is_shown_as_text_in_every_table() -> None:
    """It is neither markup nor does it steer the terminal."""
    facts = status_view(world(), FakeDaemon().health())
    facts |= {"controller": EVIL, "trust": {EVIL: 1}, "state": {"ok": False, "error": EVIL}}
    facts["sources"] = [
        {
            "name": EVIL,
            "ok": False,
            "error": EVIL,
            "agents": 1,
            "last_success": None,
            "events": {"ok": False, "error": EVIL},
        }
    ]
    facts["registry"] = {"reachable": False, "loopback_only": None, "error": EVIL}
    sheets = [
        (render.agent(hostile()), 10),
        (render.agents([hostile()], 1000), 4),
        (render.status(facts, [hostile()]), 8),
        (render.checks([{"result": "failed", "check": EVIL, "message": EVIL}]), 2),
    ]

    for sheet, times in sheets:
        printed = lines(sheet, 1000)
        assert all(line.isprintable() for line in printed)
        assert "".join(printed).count(SHOWN) >= times


def test_a_step_that_a_person_asked_for_names_the_user() -> None:
    """A release is somebody's decision, and `show` tells whose."""
    one = replace(record("x"), history=(HistoryEntry(1.7e9, "released", "reinstalled", uid=1000),))

    printed = lines(render.agent(agent_view(one, up(), (), None) | {"history": history_view(one)}))

    assert any(line.endswith("reinstalled (by uid 1000)") for line in map(str.rstrip, printed))


def test_a_step_that_was_repeated_tells_how_often_and_since_when() -> None:
    """An agent that has failed for hours is one line."""
    failed = HistoryEntry(1.7e9, "failed", "nobody answers").again(1.7e9 + 60)
    one = replace(record("x"), history=(failed,))

    printed = lines(render.agent(agent_view(one, up(), (), None) | {"history": history_view(one)}))

    (line,) = [line.rstrip() for line in printed if "failed" in line]
    assert line.strip().startswith("2023-11-14 22:14:20.000")
    assert line.endswith("nobody answers (x2 since 2023-11-14 22:13:20.000)")


def test_alternating_failures_do_not_fill_the_history() -> None:
    """Two reasons of failure that alternate for hours are one line each, with their number and the time of the last."""
    steps = (
        ("dialled", "10.0.0.1"),
        ("failed", "connection refused"),
        ("dialled", "10.0.0.1"),
        ("failed", "no answer"),
    )
    history = [HistoryEntry(1.7e9, "seen", "in source office")]
    history += [HistoryEntry(1.7e9 + at, *steps[(at - 1) % 4]) for at in range(1, 41)]
    one = replace(record("x"), history=tuple(history))

    sheet = render.agent(agent_view(one, up(), (), None) | {"history": history_view(one)})

    assert [line.strip() for line in lines(sheet) if "2023-11-14" in line] == [
        "2023-11-14 22:13:20.000   seen      in source office",
        "2023-11-14 22:13:58.000   failed    connection refused (x10 since 2023-11-14 22:13:22.000)",
        "2023-11-14 22:13:59.000   dialled   10.0.0.1 (x20 since 2023-11-14 22:13:21.000)",
        "2023-11-14 22:14:00.000   failed    no answer (x10 since 2023-11-14 22:13:24.000)",
    ]


def test_repeated_failures_are_not_folded_across_another_step() -> None:
    """A failure before and one after an operator's retry stay apart, in their order."""
    history = [
        HistoryEntry(1.7e9 + at, *step) for at, step in enumerate((("failed", "x"), ("retry", "y"), ("failed", "x")))
    ]
    one = replace(record("x"), history=tuple(history))

    sheet = render.agent(agent_view(one, up(), (), None) | {"history": history_view(one)})

    assert [line.split()[2] for line in lines(sheet) if "2023-11-14" in line] == ["failed", "retry", "failed"]
