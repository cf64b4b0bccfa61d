"""The parameters of `/v1/agents`: selections, orders, pages, and entity tags."""

import http.client
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.control.fake_daemon import NOW, FakeDaemon, record, up, world
from tests.control.unix_http import OnSocket
from tunnelmgr.control.agent_query import AgentQuery
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.world import World
from tunnelmgr.gate.traffic import Traffic

pytestmark = pytest.mark.usefixtures("server")

Get = Callable[..., Any]


@pytest.fixture
def get(place: Path, ask: Get) -> Get:
    """Return a function that asks for agents: the status, the headers and the JSON of the answer."""

    def fetch(target: str, headers: dict[str, str]) -> tuple[int, http.client.HTTPMessage, Any]:
        connection = OnSocket(place)
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, answer.headers, json.loads(body) if body else None
        finally:
            connection.close()

    async def asked(target: str = "/v1/agents", tag: str = "", **parameters: object) -> Any:  # noqa: ANN401
        query = f"?{urlencode(parameters)}" if parameters else ""
        return await ask(fetch, target + query, {"If-None-Match": tag} if tag else {})

    return asked


def names(agents: list[dict[str, Any]]) -> list[str]:
    """Return the names of agents."""
    return [agent["name"] for agent in agents]


def several(count: int) -> World:
    """Return a world with this many agents, two of which were seen at the same time each."""
    return world(*((record(f"n{number:03d}", first_seen=NOW + number // 2), up()) for number in range(count)))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"phase": "down"}, ["builder-2"]),
        ({"group": "ci", "source": "office", "phase": "up"}, ["builder-1"]),
        ({"group": "other"}, []),
        ({"search": "BUILDER-3"}, ["builder-3"]),
        ({"search": "unreach"}, ["builder-2"]),
        ({"search": "192.0.2.7", "sort": "-name"}, ["builder-4", "builder-3", "builder-2", "builder-1"]),
        ({"search": "other", "departed": "true"}, ["other-1"]),
        ({"sort": "phase"}, ["builder-3", "builder-2", "builder-4", "builder-1"]),
        ({"sort": "name", "limit": 2}, ["builder-1", "builder-2"]),
    ],
)
async def test_agents_are_selected_and_sorted(get: Get, parameters: dict[str, object], expected: list[str]) -> None:
    """Each parameter selects or sorts; the answer is an array as without parameters."""
    status, _, agents = await get(**parameters)

    assert (status, names(agents)) == (200, expected)


async def test_every_order_has_a_reverse(daemon: FakeDaemon, get: Get) -> None:
    """Each sort has all agents, and reversed they come in the opposite order, if no two are equal."""
    daemon.traffic = {
        AgentId(f"static:builder-{number}"): Traffic(to_agent=number, from_agent=9 - number) for number in range(1, 5)
    }
    for sort, first in (
        ("agent", "builder-1"),
        ("name", "builder-1"),
        ("pulled", "builder-4"),
        ("pushed", "builder-1"),
    ):
        ordered, reverse = names((await get(sort=sort))[2]), names((await get(sort=f"-{sort}"))[2])
        assert ordered[0] == first
        assert ordered == reverse[::-1]
        assert len(ordered) == 4


@pytest.mark.parametrize("sort", ["newest", "-newest", "name", "-agent", "phase", "since", "-pulled", "group"])
async def test_pages_have_every_agent_once(daemon: FakeDaemon, get: Get, sort: str) -> None:
    """Following the links, each agent comes exactly once and in order, also if some are equal."""
    daemon.world = several(25)
    whole = names((await get(sort=sort))[2])
    seen, target = [], f"/v1/agents?sort={sort}&limit=4"
    for _ in range(20):
        _, headers, agents = await get(target)
        assert len(agents) <= 4
        seen += names(agents)
        if headers["Link"] is None:
            break
        assert headers["Link"].endswith('>; rel="next"')
        target = headers["Link"].partition(">")[0].removeprefix("<")

    assert seen == whole
    assert len(set(seen)) == 25


async def test_agents_that_come_and_leave_move_no_other_to_another_page(daemon: FakeDaemon, get: Get) -> None:
    """The cursor is a place in the order, so that nothing is skipped if the last agent of a page leaves."""
    daemon.world = several(10)
    _, headers, first = await get(sort="name", limit=4)
    left = AgentId("static:n003")
    daemon.world = replace(
        daemon.world,
        records={id_: one for id_, one in daemon.world.records.items() if id_ != left},
        tunnels={id_: one for id_, one in daemon.world.tunnels.items() if id_ != left},
    )
    _, _, second = await get(headers["Link"].partition(">")[0].removeprefix("<"))

    assert names(first) == ["n000", "n001", "n002", "n003"]
    assert names(second) == ["n004", "n005", "n006", "n007"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"phase": "quarantine"}, "did you mean quarantined?"),
        ({"sort": "nam"}, "did you mean name?"),
        ({"phase": ""}, "unknown phase ''"),
        ({"limit": ""}, "from 1 to 1000"),
        ({"limit": 0}, "from 1 to 1000"),
        ({"limit": 1001}, "from 1 to 1000"),
        ({"limit": "²"}, "from 1 to 1000"),
        ({"limit": "9" * 5000}, "from 1 to 1000"),
        ({"cursor": "%"}, "invalid cursor"),
        ({"cursor": "bnVsbA"}, "invalid cursor"),
        ({"cursor": "W1wiXQ"}, "invalid cursor"),
        ({"cursor": "WzEsICJ4Il0", "sort": "name"}, "another sort"),
    ],
)
async def test_an_invalid_parameter_is_explained(get: Get, parameters: dict[str, object], words: str) -> None:
    """An invalid parameter is 400 with what to write instead."""
    status, _, answer = await get(**parameters)

    assert status == 400
    assert words in answer["error"]["message"]


async def test_an_answer_that_has_not_changed_is_304(daemon: FakeDaemon, get: Get) -> None:
    """With the tag of the last answer, a client gets 304 without a body until something changes."""
    for target in ("/v1/agents", "/v1/agents/builder-2"):
        status, headers, _ = await get(target)
        tag = headers["ETag"]
        again = await get(target, tag=tag)
        assert (status, again[0], again[2], again[1]["ETag"]) == (200, 304, None, tag)
        assert (await get(target, tag='"other"'))[0] == 200

    daemon.world = daemon.world.with_tunnel(AgentId("static:builder-2"), up())
    status, headers, _ = await get("/v1/agents/builder-2", tag=tag)
    assert status == 200
    assert headers["ETag"] != tag


def test_without_parameters_all_agents_come_newest_first() -> None:
    """The query without parameters is that of `list`: present agents, the newest first, equal ones by id."""
    world, query = several(4), AgentQuery.parse([])
    chosen = query.ordered(query.matching(world, world.records.values(), {}))

    assert [one.record.agent.name for one in chosen] == ["n002", "n003", "n000", "n001"]
