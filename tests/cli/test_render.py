"""The tables and summaries for people, at several widths."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.control.fake_daemon import KEY, FakeDaemon, agents_view, fleet, record, up, world
from tunnelmgr.cli import render
from tunnelmgr.control.views import agent_view, history_view, status_view
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.health import FastPathHealth, LimitHealth, RegistryHealth
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Connecting, Endpoint
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
    """Return a list with an agent with a long text in every cell."""
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
def test_a_table_fits_its_terminal_and_truncates_nothing(width: int) -> None:
    """At any width no line is too long and no text is truncated; the agent, its phase and the reason are shown."""
    for agents in (ec2(), listed()):
        printed = lines(render.agents(agents, width), width)

        assert max(map(len, printed)) <= width
        assert "…" not in "".join(printed)
        assert all(name in printed[1] for name in ("AGENT", "PHASE", "WHY"))
        assert all(any(agent["agent"] in line for line in printed) for agent in agents)


def test_a_reason_is_readable_on_a_narrow_terminal() -> None:
    """The column of the reason is wide enough to keep its words whole."""
    printed = " ".join(lines(render.agents(ec2(), 80), 80)).split()

    assert all(word in printed for word in ("another", "machine", "address,", "rebuilt;"))


def test_the_least_important_columns_are_left_out_first() -> None:
    """On a narrow terminal the traffic columns are left out first, the group and the age last."""
    heads = [lines(render.agents(ec2(), width), width)[1].split() for width in (80, 120, 160, 300)]

    assert heads[0] == ["AGENT", "PHASE", "WHY"]
    assert {"GROUP", "FOR"} <= set(heads[1])
    assert "CHAN" not in heads[1]
    assert heads[3] == [
        "AGENT", "NAME", "GROUP", "PHASE", "FOR", "TRUST", "ADDRESS", "CHAN", "PULLED", "PUSHED", "PROBE", "WHY",
    ]  # fmt: skip
    assert len(heads[0]) < len(heads[1]) <= len(heads[2]) < len(heads[3])


def test_columns_without_information_are_left_out() -> None:
    """NAME is left out if each id ends with the name, and WHY if no agent has a reason."""
    head = lines(render.agents(agents_view(world((record("builder-1"), up())), {}), 200))[1].split()

    assert "NAME" not in head
    assert "WHY" not in head


def test_a_row_has_the_phase_the_reason_and_the_next_attempt() -> None:
    """A row shows the phase, or `gone` for an agent that left, the reason and the next attempt."""
    printed = lines(render.agents(listed(), 4096), 4096)
    row = {line.split()[0]: line for line in printed if line.strip().startswith("static:")}

    assert "● up" in row["static:builder-1"]
    assert "1 ms" in row["static:builder-1"]
    assert "Connection refused; next attempt in" in row["static:builder-2"]
    assert "✖ quarantined" in row["static:builder-3"]
    assert "○ awaiting-identity" in row["static:builder-4"]
    assert "· gone" in row["static:other-1"]


def test_a_name_is_not_markup() -> None:
    """A name with brackets is printed as it is."""
    agents = listed()
    agents[0] |= {"name": "[bold red]x[/]", "message": "[link=evil]"}
    printed = "".join(lines(render.agents(agents, 4096), 4096))

    assert "[bold red]x[/]" in printed
    assert "[link=evil]" in printed


def test_an_empty_list_is_a_sentence() -> None:
    """`list` without agents prints a sentence instead of a table without rows."""
    assert lines(render.agents([], 80)) == ["no agents"]


# --- status ---


def facts(daemon: FakeDaemon) -> dict[str, Any]:
    """Return the daemon's status."""
    return status_view(daemon.world, daemon.health())


def test_a_source_that_fails_and_one_that_never_answered_are_problems() -> None:
    """A failing source is a problem with its error; so is one that has not answered yet."""
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
        (RegistryHealth(reachable=False, loopback_only=None), "cannot be used"),
    ],
)
def test_the_registrys_health_is_a_sentence(registry: RegistryHealth, words: str) -> None:
    """`status` says whether the registry answers and where it listens, or that this was not checked."""
    daemon = FakeDaemon(world=world((record("builder-1"), up())), registry=registry)

    assert any(words in line for line in lines(render.status(facts(daemon), [])))


def test_the_age_of_the_registrys_view_is_shown() -> None:
    """The daemon checks the registry every few seconds, and `status` shows how long ago it did."""
    checked_at = datetime.now(UTC).timestamp() - 7
    daemon = FakeDaemon(registry=RegistryHealth(True, True, checked_at=checked_at))

    assert any(
        re.search(r"on loopback only, checked [78]s ago$", line) for line in lines(render.status(facts(daemon), []))
    )


def test_a_fast_path_that_is_off_is_shown_and_is_not_a_problem() -> None:
    """A fast path that is off is shown with the reason, and one that is on is not mentioned."""
    off = facts(FakeDaemon(fast_path=FastPathHealth(active=False, reason="Channel._send_window is missing")))

    assert any("off: Channel._send_window is missing" in line for line in lines(render.status(off, [])))
    assert render.problems(off, []) == render.problems(facts(FakeDaemon()), [])
    assert not any("fast path" in line for line in lines(render.status(facts(FakeDaemon()), [])))


def test_the_status_says_what_waits_within_a_limit() -> None:
    """A limit has a line only while something waits."""
    daemon = FakeDaemon(
        limits=[
            LimitHealth("ci", "pull_rate", waiting=3, waits=9, waited_s=1.5, refused=0),
            LimitHealth("ci", "concurrent_pulls", waiting=0, waits=4, waited_s=1.0, refused=1),
        ]
    )

    printed = [line for line in lines(render.status(facts(daemon), [])) if line.startswith("waiting")]

    assert [line.split(maxsplit=1)[1] for line in printed] == ["3 transfers of group ci within pull_rate"]


def test_a_long_problem_is_indented_under_its_mark() -> None:
    """A problem that wraps stays beside its mark, so that each is recognised as one."""
    printed = lines(render.status(facts(FakeDaemon()), ec2()), 80)
    at = next(number for number, line in enumerate(printed) if line.startswith("✖ ec2:"))

    assert printed[at + 1].startswith("  ")
    assert max(map(len, printed)) <= 80


# --- show ---


def test_show_prints_everything_about_an_agent() -> None:
    """`show` prints the listeners, the evidence, the traffic and then the history."""
    one = record("builder-1")
    printed = lines(render.agent(agent_view(one, up(), fleet().rules.forwards, None) | {"history": history_view(one)}))
    text = "\n".join(printed)

    assert "registry: 127.0.0.1:5000, [::1]:5000 → 127.0.0.1:5000" in text
    assert "pinned  SHA256:" in text
    assert "0 channels, 0 B to the agent" in text
    assert text.index("seen") < text.index("evidence")


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"push_target": Endpoint("127.0.0.1", 5002)}, "127.0.0.1:5000, pushes → 127.0.0.1:5002"),
        ({"writer": "registry-1"}, "127.0.0.1:5000, no pushes: use registry-1"),
        ({"upstream": "proxy", "writer": "registry-1"}, "127.0.0.1:5000, a pull-through cache"),
        ({"upstream": "proxy", "namespace": "docker.io"}, "127.0.0.1:5000, a pull-through cache of docker.io"),
    ],
)
def test_show_prints_where_pushes_go(fields: dict[str, Any], shown: str) -> None:
    """`show` prints what a forward does with pushes, if its registry is a replica or a pull-through cache."""
    forwards = tuple(replace(forward, **fields) for forward in fleet().rules.forwards)
    view = agent_view(record("builder-1"), up(), forwards, None) | {"history": []}

    assert shown in "\n".join(lines(render.agent(view)))


def test_show_prints_the_next_attempt() -> None:
    """`show` prints when a failing agent is tried again, and after how many failures."""
    view = next(view for view in listed() if view["name"] == "builder-2")
    soon = (datetime.now(UTC) + timedelta(seconds=90)).isoformat().replace("+00:00", "Z")
    text = "\n".join(lines(render.agent(view | {"history": [], "retry_at": soon, "failures": 1})))

    assert "in 1m" in text
    assert "after 1 failure" in text
    assert "not held" in text


# --- check, and small things ---


def test_each_result_of_a_check_has_its_mark() -> None:
    """Passed, failed and noted checks have different marks."""
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
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    """A duration is shown in its two largest units."""
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"), (2 << 40, "2.0 TiB")],
)
def test_a_size_is_in_binary_units(octets: int, text: str) -> None:
    """A number of bytes is shown in KiB, MiB, GiB or TiB."""
    assert render.size(octets) == text


def test_times_in_the_past_and_missing_times_are_shown() -> None:
    """A time that has passed, by a clock that differs, is shown as 0s, and a missing one as `-`."""
    assert render.age(None) == "-"
    assert render.until("2020-01-01T00:00:00.000Z") == "0s"
    assert render.age("2999-01-01T00:00:00.000Z") == "0s"


# --- what others wrote ---

EVIL = "x[/y][bold]\x1b[31m\x9b2J\u202e\u2028\n\x07z"
"""Markup that ends before it begins, markup, colour, clearing, reversed text, and two line ends."""
SHOWN = "x[/y][bold]?[31m?2J????z"


def hostile() -> dict[str, Any]:
    """Return an agent with a hostile text in every field."""
    agent = Agent(AgentId(f"ec2:{EVIL}"), "1", EVIL, EVIL, EVIL, (EVIL,))
    trust = HostTrust(Method.CONSOLE, (KEY,), EVIL)
    mark = Quarantine(1.7e9, EVIL, EVIL)
    one = replace(record("x"), agent=agent, trust=trust, quarantine=mark, history=(HistoryEntry(1.7e9, EVIL, EVIL),))
    status = Connecting(1.7e9, 1, up().spec, error=EVIL, message=EVIL, login_key=EVIL)
    view = agent_view(one, status, world().rules.forwards, None)
    return {**view, "history": history_view(one)}


def test_foreign_text_is_shown_as_text_in_every_table() -> None:
    """Text of agents and clouds is neither markup nor control characters in any table."""
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


def test_a_step_on_request_names_the_user() -> None:
    """The history shows which user of this machine requested a release."""
    one = replace(record("x"), history=(HistoryEntry(1.7e9, "released", "reinstalled", uid=1000),))

    printed = lines(render.agent(agent_view(one, up(), (), None) | {"history": history_view(one)}))

    assert any(line.endswith("reinstalled (by uid 1000)") for line in map(str.rstrip, printed))


def test_a_repeated_step_has_its_count_and_its_first_time() -> None:
    """An agent that has failed for hours is one line, with the number of failures and the time of the first."""
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
