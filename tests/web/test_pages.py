"""The status page over HTTP: what is on it, in which sizes, and who may see it."""

import asyncio
import re
import time
from dataclasses import replace
from html import unescape
from itertools import pairwise

import pytest

from tests.control.fake_daemon import NOW, FakeDaemon, record, world
from tests.web.served import REFUSAL, TRANSFER, busy_daemon, fetch, large_fleet, served
from tunnelmgr.control import loop_share
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.tunnel import Phase, Resting
from tunnelmgr.core.world import SourceView
from tunnelmgr.web import pages
from tunnelmgr.web.access import CONTENT_SECURITY_POLICY
from tunnelmgr.web.model import ROWS

MAX_BYTES = 100_000


def words(html: str) -> str:
    """Return the text of a page with single spaces."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


# --- what is shown ---


async def test_the_overview_shows_everything_at_once() -> None:
    """The overview has the fleet by phase, each agent with its reason, transfers, refusals, sources and quarantines."""
    daemon = busy_daemon()
    async with served(daemon) as url:
        status, html, _ = await fetch(url)

    text = words(html)
    assert status == 200
    for expected in (
        "1 up",
        "1 quarantined",
        "builder-1",
        "cannot reach 192.0.2.7 port 22: Connection refused",
        'tunnelmgr release static:builder-3 --reason "…"',
        "50.0 MiB",
        "10.0 MiB/s",
        "push 403 team/app :v1 default",
        "17",
        "office ● complete",
        "To agents",
        "registry ● answers",
    ):
        assert expected in text
    assert html.count('class="line"') == 4


async def test_problems_come_first() -> None:
    """A registry that does not answer, a source that fails and a dead member are sentences at the top."""
    daemon = FakeDaemon(registry=RegistryHealth(reachable=False, loopback_only=None, error="Connection refused"))
    sources = {"cloud": SourceView("cloud", ok=False, error="throttled")}
    members = {"one": Member("one"), "two": Member("two", alive=False)}
    daemon.world = replace(daemon.world, sources=sources, cluster=Cluster("one", members))
    async with served(daemon) as url:
        text = words((await fetch(url))[1])

    assert "3 problems" in text
    assert "the registry cannot be used: Connection refused" in text
    assert "source cloud: throttled" in text
    assert "member two is dead" in text
    assert text.index("3 problems") < text.index("1 up")
    assert "two ✖ dead" in text


async def test_an_agents_page_says_why_and_what_to_do() -> None:
    """The page of an agent has its phase, the reason, the cure, the next attempt, its evidence and its history."""
    async with served(busy_daemon()) as url:
        text = words((await fetch(f"{url}/agents/static:builder-2"))[1])

    for expected in (
        "▽ down",
        "unreachable cannot reach 192.0.2.7 port 22: Connection refused",
        "What to do Check that the machine runs",
        "Next attempt",
        "after 3 failures",
        "pinned",
        "in source office",
    ):
        assert expected in text


async def test_what_stands_between_backticks_is_code() -> None:
    """The commands and settings in a reason are set as code, and the rest of it is escaped nevertheless."""
    daemon = FakeDaemon()
    why = "set `GatewayPorts no` <b>there</b>, not `<i>` and not `"
    lost = Resting(Phase.DOWN, NOW, failures=1, error="listen-refused", message=why)
    daemon.world = daemon.world.with_tunnel(AgentId("static:builder-2"), lost)
    async with served(daemon) as url:
        html = (await fetch(f"{url}/agents/static:builder-2"))[1]

    assert "set <code>GatewayPorts no</code> &lt;b&gt;there&lt;/b&gt;, not <code>&lt;i&gt;</code> and not `" in html
    assert "tunnelmgr doctor static:builder-2" in html


async def test_a_quarantined_agents_page_has_the_command() -> None:
    """The page of an agent in quarantine has the command that releases it."""
    async with served(busy_daemon()) as url:
        text = words((await fetch(f"{url}/agents/builder-3"))[1])

    assert 'Then run tunnelmgr release static:builder-3 --reason "…"' in text


async def test_the_command_is_safe_to_paste() -> None:
    """An id that a shell would interpret is quoted in the command."""
    daemon = FakeDaemon()
    held = replace(daemon.world.records["static:builder-3"])  # type: ignore[index]
    evil = replace(held, agent=replace(held.agent, id="x:$(reboot)'", name="evil"))
    daemon.world = world((evil, None))
    async with served(daemon) as url:
        text = words((await fetch(url))[1])

    assert """tunnelmgr release 'x:$(reboot)'"'"'' --reason""" in text


async def test_an_agent_that_left_is_gone() -> None:
    """An agent that left is on the page only on request, and its own page says that it needs nothing."""
    async with served(busy_daemon()) as url:
        assert "other-1" not in (await fetch(url))[1]
        assert "· gone" in words((await fetch(f"{url}/?departed=true"))[1])
        assert "needs nothing" in words((await fetch(f"{url}/agents/static:other-1"))[1])


@pytest.mark.parametrize("agent", ["nobody", "builder", "%3Cscript%3E"])
async def test_an_unknown_agent_is_404(agent: str) -> None:
    """An agent that does not exist, and a text that several match, get a page with status 404."""
    async with served(busy_daemon()) as url:
        status, html, headers = await fetch(f"{url}/agents/{agent}")

    assert status == 404
    assert "knows no such agent" in html
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


# --- selections ---


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("phase=quarantined", ["builder-3"]),
        ("phase=down&phase=up", ["builder-1", "builder-2"]),
        ("search=BUILDER-4", ["builder-4"]),
        ("search=unreachable", ["builder-2"]),
        ("group=other", []),
        ("source=office&sort=-name", ["builder-4", "builder-3", "builder-2", "builder-1"]),
        ("sort=phase", ["builder-3", "builder-2", "builder-4", "builder-1"]),
        ("search=&phase=&group=&sort=name", ["builder-1", "builder-2", "builder-3", "builder-4"]),
    ],
)
async def test_the_table_is_filtered_and_sorted_by_the_url(query: str, names: list[str]) -> None:
    """Filters and sorts are parameters of the URL, so that they need no script and can be kept as a link."""
    async with served(busy_daemon()) as url:
        html = (await fetch(f"{url}/?{query}"))[1]

    table = html.partition('<section id="agents"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row" class="agent"><a href="[^"]*">([^<]*)', table) == names


@pytest.mark.parametrize("query", ["phase=dwn", "sort=colour", "page=x", "page=-1"])
async def test_an_invalid_selection_is_explained(query: str) -> None:
    """An unknown phase or sort is 400 with the known ones."""
    async with served(busy_daemon()) as url:
        status, html, _ = await fetch(f"{url}/?{query}")

    assert status == 400
    assert "unknown" in html or "write a number" in html


async def test_sorted_columns_are_marked_for_screen_readers() -> None:
    """The sorted column has `aria-sort`, and its link reverses the order."""
    async with served(busy_daemon()) as url:
        html = (await fetch(f"{url}/?sort=name&sort=agent"))[1]
        reverse = (await fetch(f"{url}/?sort=-agent"))[1]

    assert 'class="agent" aria-sort="ascending"><a href="?sort=-agent#agents"' in html
    assert 'class="agent" aria-sort="descending"><a href="?sort=agent#agents"' in reverse


# --- size ---


async def test_five_thousand_agents_are_pages_of_less_than_100_kb() -> None:
    """Every page of a large fleet is below 100 KB, and all of its agents are on exactly one."""
    daemon = FakeDaemon(running=100 * busy_daemon().running, refused=100 * busy_daemon().refused)
    daemon.world = large_fleet(5000)
    seen: list[str] = []
    async with served(daemon) as url:
        for page in range(1, -(-5000 // ROWS) + 1):
            html = (await fetch(f"{url}/?page={page}&sort=name"))[1]
            assert len(html.encode()) < MAX_BYTES
            seen += re.findall(r'row" class="agent"><a href="[^"]*">([^<]*)', html)
        last = (await fetch(f"{url}/?page=999&sort=name"))[1]

    assert seen == [f"builder-{number:05d}" for number in range(5000)]
    assert "page 63 of 63" in last
    assert "and 85 more" in last


async def test_long_names_and_many_groups_do_not_make_a_page_large() -> None:
    """Agents with names of 255 characters, each in a group of its own, fit on a page."""
    daemon = busy_daemon()
    one = record("x").agent
    agents = [
        replace(
            one, id=AgentId(f"ec2:i-{number:017x}"), name=f"{number:03d}" + 252 * "n", group=f"{number:03d}{252 * 'g'}"
        )
        for number in range(500)
    ]
    long = {"repository": 255 * "r", "reference": "sha256:" + 64 * "0", "agent": agents[0].id}
    daemon.running = 50 * [replace(TRANSFER, **long)]
    daemon.refused = 50 * [replace(REFUSAL, **long)]
    daemon.world = world(*((replace(record("x"), agent=agent), None) for agent in agents))
    async with served(daemon) as url:
        html = (await fetch(url))[1]

    assert html.count('<th scope="row" class="agent">') == ROWS
    assert len(html.encode()) < MAX_BYTES


async def test_the_whole_page_with_its_files_is_small() -> None:
    """Page, style sheet, script and icon together are below 100 KB, also with a large fleet."""
    daemon = busy_daemon()
    daemon.world = large_fleet(5000)
    total = 0
    async with served(daemon) as url:
        html = (await fetch(url))[1]
        total += len(html.encode())
        for name in re.findall(r'"(static/[^"]*)"', html):
            status, text, _ = await fetch(f"{url}/{name}")
            assert status == 200
            total += len(text.encode())

    assert total < MAX_BYTES


async def test_readers_take_turns_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are asked for at once are made one after another, each followed by a pause for the tunnels."""
    daemon, turns, made = busy_daemon(), [], pages.overview
    daemon.world = large_fleet(2000)

    def overview(*arguments: object) -> object:
        began, cpu = time.monotonic(), time.thread_time()
        model = made(*arguments)  # type: ignore[arg-type]
        turns.append((began, time.thread_time() - cpu))
        return model

    monkeypatch.setattr(pages, "overview", overview)
    monkeypatch.setattr(loop_share, "PAUSE_FACTOR", 20.0)
    async with served(daemon) as url:
        answers = await asyncio.gather(*(fetch(f"{url}/?page={number}") for number in range(1, 5)))

    assert [status for status, _, _ in answers] == [200] * 4
    assert all(following - began > 10 * spent for (began, spent), (following, _) in pairwise(turns))


# --- access ---


@pytest.mark.parametrize("path", ["/", "/agents/static:builder-1", "/agents/nobody", "/static/status.css", "/?phase=x"])
async def test_every_page_has_the_headers_that_protect_it(path: str) -> None:
    """No page can be framed, sniffed or extended by a script or a style of another origin."""
    async with served(busy_daemon()) as url:
        headers = (await fetch(url + path))[2]

    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9750", 200),
        ("localhost:9750", 200),
        ("LOCALHOST", 200),
        ("[::1]:9750", 200),
        ("192.0.2.7", 200),
        ("registry-1.example:9750", 200),
        ("evil.example", 403),
        ("evil.example:9750", 403),
        ("localhost.evil.example", 403),
        ("registry-1.example.evil.example", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/agents/static:builder-1", "/static/status.css"])
async def test_a_foreign_name_in_the_host_header_is_refused(host: str, status: int, path: str) -> None:
    """A page whose name was made to resolve to this address reads nothing; addresses and own names work."""
    async with served(busy_daemon(), names=("registry-1.example",)) as url:
        assert (await fetch(url + path, Host=host))[0] == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ],
)
async def test_pages_of_other_sites_may_only_link(site: str, mode: str, status: int) -> None:
    """A browser that loads the page for another site is refused, so that such a site cannot use up the streams."""
    async with served(busy_daemon()) as url:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert (await fetch(f"{url}/", **headers))[0] == status
        if status == 403:
            assert (await fetch(f"{url}/events", **headers))[0] == 403
        assert (await fetch(f"{url}/healthz", **headers))[0] == 200


async def test_a_foreign_name_gets_no_stream() -> None:
    """The streams are protected as the page is."""
    async with served(busy_daemon()) as url:
        for path in ("/events", "/agents/static:builder-1/events"):
            assert (await fetch(url + path, Host="evil.example"))[0] == 403


@pytest.mark.parametrize("path", ["/", "/agents/static:builder-1", "/static/status.js"])
async def test_head_is_answered(path: str) -> None:
    """HEAD has the headers of GET and no body."""
    async with served(busy_daemon()) as url:
        status, body, headers = await fetch(url + path, "HEAD")

    assert (status, body) == (200, "")
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


async def test_only_the_pages_own_files_are_served() -> None:
    """A path below `static/` that is not one of the page's files is 404."""
    async with served(busy_daemon()) as url:
        for name in ("../pages.py", "%2e%2e%2fpages.py", "nothing.css", "..%2f..%2ferrors.py"):
            assert (await fetch(f"{url}/static/{name}"))[0] == 404


async def test_a_name_is_text_and_not_html() -> None:
    """Names, groups and messages are escaped, and characters that change the direction of writing are replaced."""
    daemon = FakeDaemon()
    agent = replace(record("x").agent, name="<img src=x onerror=alert(1)>\u202egnp.exe", group="</td><script>")
    daemon.world = world((replace(record("x"), agent=agent), None))
    async with served(daemon) as url:
        html = (await fetch(url))[1]

    assert "<img" not in html
    assert "</td><script>" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;?gnp.exe" in html
