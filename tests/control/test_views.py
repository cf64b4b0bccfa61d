"""The JSON that users and scripts rely on."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.fake_daemon import FORWARD, NOW, FakeDaemon, agents_view, record, up, world
from tunnelmgr.control.views import (
    agent_view,
    find,
    history_view,
    status_view,
    time_view,
)
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.tunnel import Bindings, Connecting, Phase, Resting, Seeking
from tunnelmgr.core.world import Record, SourceView, status_of
from tunnelmgr.gate.traffic import Traffic

TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ"

LIST_KEYS = {
    "agent": str,
    "name": str,
    "group": str,
    "source": str,
    "address": str,
    "phase": str,
    "since": str,
    "trust": (str, type(None)),
    "error": (str, type(None)),
    "retry_at": (str, type(None)),
    "forwards": list,
    "channels": int,
    "bytes_to_agent": int,
    "bytes_from_agent": int,
    "probe_ms": (float, type(None)),
}
STATUS_KEYS = {
    "controller": str,
    "version": str,
    "uptime_s": float,
    "agents": int,
    "up": int,
    "quarantined": int,
    "sources": list,
    "registry": dict,
}


# --- the contract's keys ---


def test_an_element_of_list_has_every_documented_key_with_its_type() -> None:
    """An element of `list --json` has every documented key with its type, in every phase."""
    daemon = FakeDaemon()
    for view in agents_view(daemon.world, {}, departed=True):
        for key, kind in LIST_KEYS.items():
            assert isinstance(view[key], kind), (view["agent"], key)
        for forward in view["forwards"]:
            assert forward["name"] == "registry"
            assert forward["listen"] == ["127.0.0.1:5000", "[::1]:5000"]
            assert forward["target"] == "127.0.0.1:5000"
        assert view["phase"] in {phase.value for phase in Phase}


def test_status_has_every_documented_key_with_its_type() -> None:
    """`status --json` has every documented key with its type, and the world's numbers."""
    daemon = FakeDaemon()
    view = status_view(daemon.world, daemon.health())

    for key, kind in STATUS_KEYS.items():
        assert isinstance(view[key], kind), key
    assert (view["agents"], view["up"], view["quarantined"]) == (4, 1, 1)
    assert set(view["sources"][0]) >= {"name", "ok", "last_success", "error"}
    assert set(view["registry"]) >= {"reachable", "loopback_only"}
    assert view["fast_path"] == {"active": True, "reason": None}


def test_the_phases_add_up_to_the_agents() -> None:
    """Every present agent is counted in one phase, and agents that left in none."""
    daemon = FakeDaemon()
    view = status_view(daemon.world, daemon.health())

    assert sum(view["phases"].values()) == view["agents"]
    assert view["phases"]["awaiting-identity"] == view["phases"]["down"] == 1


def test_an_agent_that_is_up_shows_its_numbers() -> None:
    """An agent that is up shows its traffic and the time of its last probe."""
    one = record("builder-1")
    view = agent_view(one, up(), (FORWARD,), Traffic(channels=2, to_agent=300, from_agent=40))

    assert (view["channels"], view["bytes_to_agent"], view["bytes_from_agent"]) == (2, 300, 40)
    assert view["probe_ms"] == 1.25
    assert view["trust"] == "pinned"
    assert view["error"] is view["retry_at"] is view["message"] is None


def test_a_forward_shows_which_addresses_are_held() -> None:
    """A forward shows the addresses that its tunnel holds, which may lack one address family."""
    view = agent_view(record("builder-1"), up(bindings=Bindings(FORWARD.listen[:1])), (FORWARD,), None)

    assert view["forwards"][0]["held"] == ["127.0.0.1:5000"]


def test_an_agent_without_an_address_has_a_null_address() -> None:
    """An agent without an address has the address null."""
    one = record("builder-1")
    bare = replace(one, agent=replace(one.agent, addresses=()))

    assert agent_view(bare, up(), (FORWARD,), None)["address"] is None


def test_a_search_is_shown_as_the_status_in_which_it_began() -> None:
    """A search for evidence changes nothing in the view of an agent."""
    resting = Resting(Phase.AWAITING_IDENTITY, NOW, 2, 3, "host-key-unknown", "no host key block yet", NOW + 60)
    one = record("builder-1", trust=None)

    assert agent_view(one, Seeking(resting), (FORWARD,), None) == agent_view(one, resting, (FORWARD,), None)


def test_an_agent_that_is_dialled_again_shows_the_last_failure_and_no_probe() -> None:
    """A new dial keeps the last failure visible, and shows neither a probe nor a time for the next try."""
    status = Connecting(NOW, 2, up().spec, 1, "unreachable", "cannot reach 192.0.2.7 port 22", "SHA256:ours")
    view = agent_view(record("builder-1"), status, (FORWARD,), None)

    assert (view["phase"], view["error"], view["failures"]) == ("connecting", "unreachable", 1)
    assert view["login_key"] == "SHA256:ours"
    assert view["probe_ms"] is view["probed_at"] is view["retry_at"] is None


def test_a_failed_agent_shows_its_error_code_and_message() -> None:
    """A failed agent shows the error's code, its message, and the time of the next try."""
    daemon = FakeDaemon()
    view = next(view for view in agents_view(daemon.world, {}) if view["name"] == "builder-2")

    assert (view["phase"], view["error"], view["failures"]) == ("down", "unreachable", 3)
    assert "Connection refused" in view["message"]
    assert view["retry_at"] == timestamp(NOW + 60)


def test_a_quarantined_agent_shows_why() -> None:
    """A quarantined agent shows the reason from its record."""
    daemon = FakeDaemon()
    view = next(view for view in agents_view(daemon.world, {}) if view["name"] == "builder-3")

    assert (view["phase"], view["error"]) == ("quarantined", "host-key-mismatch")


def test_a_source_that_fails_names_its_error() -> None:
    """A failing source shows its error and keeps the time of its last complete answer."""
    one = world((record("builder-1"), up()))
    failing = replace(
        one, sources={"office": SourceView("office", ok=False, last_success=NOW, error="throttled", missing=2)}
    )
    view = status_view(failing, FakeDaemon().health())["sources"][0]

    assert (
        view.items()
        >= {
            "name": "office",
            "ok": False,
            "last_success": timestamp(NOW),
            "error": "throttled",
            "missing": 2,
            "agents": 1,
        }.items()
    )


def test_an_unknown_fact_about_the_registry_is_null() -> None:
    """`loopback_only` is null if this machine cannot determine it."""
    daemon = FakeDaemon(registry=RegistryHealth(False, None, "refused", checked_at=NOW))
    view = status_view(daemon.world, daemon.health())["registry"]

    assert view == {
        "reachable": False,
        "loopback_only": None,
        "error": "refused",
        "checked_at": "2023-11-14T22:13:20.000Z",
    }


# --- order and presence ---


def test_the_newest_agent_comes_first_and_those_that_left_only_when_asked_for() -> None:
    """The newest agent comes first, and agents that left are listed on request only."""
    one = world(
        (record("old", first_seen=NOW - 9), up()),
        (record("new", first_seen=NOW + 9), None),
        (record("gone", first_seen=NOW + 99, present=False), None),
    )

    assert [view["name"] for view in agents_view(one, {})] == ["new", "old"]
    assert [view["name"] for view in agents_view(one, {}, departed=True)] == ["gone", "new", "old"]


def test_an_agent_that_left_but_still_has_a_worker_is_listed() -> None:
    """An agent that left is listed until its tunnel is closed."""
    one = world((record("leaving", present=False), up()))

    assert [view["present"] for view in agents_view(one, {})] == [False]


def test_the_status_of_an_agent_without_a_tunnel_comes_from_its_record() -> None:
    """An agent without a tunnel is down if it left, and quarantined if its record says so."""
    daemon = FakeDaemon()
    records = daemon.world.records

    assert status_of(daemon.world, records[AgentId("static:other-1")]).phase is Phase.DOWN
    assert status_of(daemon.world, records[AgentId("static:builder-3")]).phase is Phase.QUARANTINED


def test_a_history_is_shown_oldest_first() -> None:
    """A history is sorted by time, oldest first, and its times sort as text."""
    history = history_view(record("builder-1"))

    assert [moment["step"] for moment in history] == ["seen", "evidence"]
    assert history[0]["time"] < history[1]["time"]


@pytest.mark.parametrize(("at", "text"), [(None, None), (0.0, "1970-01-01T00:00:00.000Z")])
def test_times_are_rfc_3339_in_utc(at: float | None, text: str | None) -> None:
    """Times are RFC 3339 in UTC, always with milliseconds."""
    assert time_view(at) == text


# --- finding by what a person writes ---

HERE = world(
    (record("builder-1"), up()),
    (record("builder-10"), up()),
    (record("build"), up()),
    (record("away-1", present=False), None),
)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("static:builder-1", ["builder-1"]),
        ("builder-1", ["builder-1"]),
        ("static:builder-10", ["builder-10"]),
        ("static:bu", ["builder-1", "builder-10", "build"]),
        ("builder", ["builder-1", "builder-10"]),
        ("build", ["build"]),
        ("away-1", ["away-1"]),
        ("aw", ["away-1"]),
        ("nobody", []),
        ("uilder", []),
    ],
)
def test_an_agent_is_found_by_its_id_its_name_or_a_prefix(wanted: str, names: list[str]) -> None:
    """A whole id is preferred to one that only begins with the text."""
    assert find(HERE, wanted) == [f"static:{name}" for name in names]


def named(id_: str, name: str, *, present: bool = True) -> Record:
    """Return the record of an agent with this id and name."""
    one = record("x", present=present)
    return replace(one, agent=replace(one.agent, id=AgentId(id_), name=name))


def test_a_present_agent_is_preferred_to_one_that_left_but_not_for_a_change() -> None:
    """A reused name finds the present machine, but is ambiguous for a change."""
    both = world((named("ec2:i-1", "ci-1", present=False), None), (named("ec2:i-2", "ci-1"), up()))

    assert find(both, "ci-1") == ["ec2:i-2"]
    assert find(both, "ci-1", strictly=True) == ["ec2:i-1", "ec2:i-2"]


@pytest.mark.parametrize("name", ["static:builder-1", "builder-1", "static:b", "builder", "i-1"])
def test_a_machine_named_like_an_id_never_hides_the_agent_with_that_id(name: str) -> None:
    """A machine that is named like another agent's id, or a prefix of it, does not hide that agent."""
    here = world((record("builder-1"), up()), (named("ec2:i-1", name), up()), (named("ec2:i-10", "x"), up()))

    assert find(here, "static:builder-1", strictly=True) == ["static:builder-1"]
    assert find(here, "builder-1", strictly=True) == ["static:builder-1"]
    assert find(here, "i-1", strictly=True) == ["ec2:i-1"]
    assert "static:builder-1" in find(here, "builder", strictly=True)
    assert find(here, "static:b", strictly=True) == ["static:builder-1"]


def test_a_name_in_the_form_of_an_id_finds_no_agent() -> None:
    """A name that looks like an id finds no agent, because the agent with that id may be gone or yet to come."""
    here = world((named("ec2:i-1", "static:builder-1"), up()))

    assert find(here, "static:builder-1") == []


def test_a_name_that_is_neither_an_id_nor_a_prefix_is_found() -> None:
    """An agent is found by its name; two agents of one name are two candidates."""
    here = world((named("ec2:i-1", "web"), up()), (named("ec2:i-2", "db"), up()), (named("ec2:i-3", "db"), up()))

    assert find(here, "web", strictly=True) == ["ec2:i-1"]
    assert find(here, "db", strictly=True) == ["ec2:i-2", "ec2:i-3"]


ids = st.builds(
    "{}:{}".format, st.sampled_from(["static", "ec2", "hetzner:ci"]), st.text("abi-1", min_size=1, max_size=4)
)


@settings(derandomize=True, database=None, max_examples=300)
@given(
    fleet=st.dictionaries(ids, st.text("abi-1:", max_size=6) | ids, max_size=6),
    evil=st.text("abi-1:", max_size=8) | ids,
)
def test_naming_a_machine_never_changes_what_an_id_finds(fleet: dict[str, str], evil: str) -> None:
    """With another machine of any name, a text finds the same agents as before or is ambiguous."""
    own = "ec2:evil"
    before = world(*((named(id_, name), up()) for id_, name in fleet.items()))
    after = world(*((named(id_, name), up()) for id_, name in fleet.items()), (named(own, evil), up()))

    for wanted in {*fleet, *(id_.partition(":")[2] for id_ in fleet), evil}:
        was, now = (find(each, wanted, strictly=True) for each in (before, after))
        assert not was or now != [own] or own.startswith(wanted)
        if wanted in fleet:
            assert now == [wanted]
        if own not in now:
            assert now == was
