"""The catalog shows a group the repositories that it may pull, in full pages, and reveals nothing else."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tunnelmgr.core.oci import classify
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.catalog import NAMES_PER_CHECKPOINT, CatalogSearch, PageSource
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.registry_queries import RegistryPage
from tunnelmgr.gate.timeouts import Timeouts

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Scripted, Talk
    from tests.gate.docker_registry import Registry

Grants = Callable[..., Gate]
NAMES = [f"{team}/{number:03}" for team in ("hidden", "open", "secret") for number in range(150)]


class FakeCatalog:
    """A registry's catalog, paged as docker-registry does it."""

    def __init__(self, names: list[str], most: int = 1000) -> None:
        self._names = names
        self._most = most
        self.targets: list[str] = []

    async def fetch_page(self, _: str, target: str) -> RegistryPage:
        """Return a page."""
        self.targets.append(target)
        query = dict(classify("GET", target).query)
        size = int(query.get("n", min(100, self._most)))
        if size > self._most:
            return RegistryPage(400, b"{}", has_next=False)
        left = [name for name in self._names if name > query.get("last", "")]
        body = json.dumps({"repositories": left[:size]}).encode()
        return RegistryPage(200, body, has_next=len(left) > size)


class Agent:
    """An agent whose checkpoints are counted."""

    def __init__(self) -> None:
        self.checkpoints = 0

    async def checkpoint(self) -> None:
        """Count a checkpoint."""
        self.checkpoints += 1


@dataclass
class OnePage:
    """A registry that answers every request with the same page."""

    page: RegistryPage

    async def fetch_page(self, _host: str, _target: str) -> RegistryPage:
        """Return the page."""
        return self.page


def search(
    pages: PageSource,
    visible: str = "**",
    *,
    agent: Agent | None = None,
    turn: Slots | None = None,
    timeout: float = 5.0,
) -> CatalogSearch:
    """Return a search by a group that may pull what the pattern `visible` matches."""
    policy = GroupPolicy.build("ci", pull=(visible,))
    return CatalogSearch(pages, "localhost:5000", policy, agent or Agent(), turn or Slots(1), timeout)


async def get_page(catalog: FakeCatalog, query: str = "", visible: str = "open/**") -> tuple[list[str], str]:
    """Request one page; returns its names and the query of the next page."""
    request = classify("GET", f"/v2/_catalog{query}")
    answer = await search(catalog, visible).page(request, close=False)
    return listed(answer), next_query(answer.link)


def listed(answer: LocalReply) -> list[str]:
    """Return the names on a page."""
    names = answer.content["repositories"]
    assert isinstance(names, list)
    return names


def next_query(link: str) -> str:
    """Return the query of a link, empty without one."""
    matched = re.fullmatch(r'</v2/_catalog(\?[^>]+)>; rel="next"', link)
    assert matched or not link
    return matched[1] if matched else ""


async def get_all_pages(catalog: FakeCatalog, query: str, visible: str = "open/**") -> list[list[str]]:
    """Follow the links to the last page."""
    pages = []
    while True:
        names, query = await get_page(catalog, query, visible)
        pages.append(names)
        if not query:
            return pages


@pytest.mark.parametrize("size", [1, 7, 50, 149, 150, 151, 1000, 5000])
@pytest.mark.parametrize("most", [30, 100, 1000])
async def test_the_pages_together_hold_exactly_the_visible_names(size: int, most: int) -> None:
    """All pages but the last are full and none is empty, however the registry cuts its own pages."""
    pages = await get_all_pages(FakeCatalog(NAMES, most), f"?n={size}")

    assert [name for page in pages for name in page] == [name for name in NAMES if name.startswith("open/")]
    assert {len(page) for page in pages[:-1]} <= {size}
    assert pages[-1]


async def test_a_link_never_contains_a_hidden_name() -> None:
    """The link to the next page contains the last name that was shown, not a hidden one."""
    names, query = await get_page(FakeCatalog(NAMES), "?n=2")

    assert names == ["open/000", "open/001"]
    assert query == "?last=open%2F001&n=2"


async def test_there_is_no_link_to_an_empty_page() -> None:
    """There is no link to a page without visible names, which would reveal that there are hidden ones."""
    assert await get_page(FakeCatalog(NAMES), "?n=150") == ([name for name in NAMES if "open" in name], "")


async def test_a_page_has_a_hundred_names_by_default() -> None:
    """Without `n`, a page has 100 names, as in docker-registry."""
    names, query = await get_page(FakeCatalog(NAMES))

    assert len(names) == 100
    assert query == "?last=open%2F099&n=100"


async def test_a_group_that_may_pull_nothing_gets_an_empty_list() -> None:
    """A group that may pull nothing gets an empty list without a link."""
    assert await get_page(FakeCatalog(NAMES), visible="nothing/**") == ([], "")


async def test_a_page_of_no_names_sends_no_request() -> None:
    """A request with `n=0` is answered without a request to the registry."""
    catalog = FakeCatalog(NAMES)

    assert await get_page(catalog, "?n=0") == ([], "")
    assert catalog.targets == []


async def test_a_search_ends_after_a_number_of_pages() -> None:
    """A search that ends after its last page returns the names found so far with a link, or an error with advice."""
    few = FakeCatalog(NAMES, most=1)

    with pytest.raises(RegistryUnavailableError, match="use the repository's name"):
        await get_page(few)
    names, query = await get_page(few, "?last=hidden/100")

    assert len(few.targets) <= 2 * 101
    assert names
    assert query == f"?last=open%2F{names[-1][-3:]}&n=100"


async def test_a_search_ends_at_its_timeout() -> None:
    """A search that runs out of time returns the names found so far with a link, or an error with advice."""
    asked = classify("GET", "/v2/_catalog?n=5")

    answer = await search(StallingCatalog(), "open/**", timeout=0.02).page(asked, close=False)
    with pytest.raises(RegistryUnavailableError, match=r"within 0\.02 s: use the repository's name"):
        await search(StallingCatalog(), "mine/**", timeout=0.02).page(asked, close=False)

    assert (listed(answer), next_query(answer.link)) == (["open/1", "open/2"], "?last=open%2F2&n=5")


class StallingCatalog:
    """A registry that returns one page, and never returns the next."""

    async def fetch_page(self, _: str, target: str) -> RegistryPage:
        """Return the first page."""
        if "last" in target:
            await asyncio.get_running_loop().create_future()
        return RegistryPage(200, b'{"repositories": ["open/1", "open/2"]}', has_next=True)


async def test_an_agent_has_one_search_at_a_time() -> None:
    """A second search of an agent waits for the first one, at most for the timeout of a search."""
    turn, catalog = Slots(1), CountingCatalog()
    asked = classify("GET", "/v2/_catalog")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(search(catalog, turn=turn).page(asked, close=False), name="search")
    async with turn:
        with pytest.raises(RegistryUnavailableError, match="or try again later"):
            await search(catalog, turn=turn, timeout=0.01).page(asked, close=False)

    assert catalog.most == 1


class CountingCatalog:
    """A registry that counts how many requests it has at once."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def fetch_page(self, _host: str, _target: str) -> RegistryPage:
        """Return a page."""
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return RegistryPage(200, b'{"repositories": ["open/1"]}', has_next=False)


async def test_other_agents_run_while_names_are_filtered() -> None:
    """A page of names has one checkpoint for each `NAMES_PER_CHECKPOINT` names."""
    names = [f"open/{number}" for number in range(10 * NAMES_PER_CHECKPOINT)]
    page = RegistryPage(200, json.dumps({"repositories": names}).encode(), has_next=False)
    agent = Agent()

    await search(OnePage(page), agent=agent).page(classify("GET", "/v2/_catalog"), close=False)

    assert agent.checkpoints == 10


async def test_a_search_that_ran_out_of_time_leaves_no_response_for_the_next_request(
    talk: "Talk", gate_for: Grants, scripted: "Scripted", monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a search that ran out of time, the next request uses a new connection to the registry."""
    monkeypatch.setattr("tunnelmgr.gate.catalog.SEARCH_TIMEOUT", 0.05)
    late = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"last=" in head:
            await late.wait()
        body = b'{"repositories": ["team/app"]}' if b"_catalog" in head else b"{}"
        more = b"Link: </v2/_catalog?last=x>; rel=next\r\n" if b"_catalog" in head else b""
        writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body))
        await script(reader, writer)

    async with scripted(script) as registry, talk(gate_for(), registry.endpoint) as agent:
        page = await agent.ask("GET", "/v2/_catalog?n=10")
        late.set()
        after = await agent.ask("GET", "/v2/")

    assert json.loads(page.body) == {"repositories": ["team/app"]}
    assert after.body == b"{}"
    assert registry.connections == 2


@pytest.mark.parametrize(
    "page",
    [
        RegistryPage(500, b"{}", has_next=False),
        RegistryPage(400, b"{}", has_next=False),
        RegistryPage(200, b"<html>", has_next=False),
        RegistryPage(200, b"\xff", has_next=False),
        RegistryPage(200, b"[]", has_next=False),
        RegistryPage(200, b"{}", has_next=False),
        RegistryPage(200, b'{"repositories": {"a": 1}}', has_next=False),
        RegistryPage(200, b'{"repositories": [1]}', has_next=False),
    ],
)
async def test_an_invalid_page_is_an_error_of_the_registry(page: RegistryPage) -> None:
    """A page that is not a list of names raises RegistryUnavailableError."""
    with pytest.raises(RegistryUnavailableError):
        await search(OnePage(page)).page(classify("GET", "/v2/_catalog"), close=False)


@pytest.mark.parametrize("body", [b'{"repositories": null}', b'{"repositories": []}'])
async def test_an_empty_page_ends_the_search(body: bytes) -> None:
    """An empty page of the registry ends the search, even if it has a link to a next page."""
    page = RegistryPage(200, body, has_next=True)

    answer = await search(OnePage(page)).page(classify("GET", "/v2/_catalog"), close=False)

    assert listed(answer) == []


async def collect(agent: "Conversation", size: int) -> list[str]:
    """Follow the real links through the gate."""
    names: list[str] = []
    query = f"?n={size}"
    while query:
        page = await agent.ask("GET", f"/v2/_catalog{query}")
        assert page.status == 200
        names += json.loads(page.body)["repositories"]
        query = next_query(page.headers.get("link", ""))
    return names


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_a_group_lists_what_it_may_pull(talk: "Talk", gate_for: Grants, registry: "Registry", size: int) -> None:
    """Through the real registry, a group lists what it may pull and push, without what is denied to it."""
    for name in ("catalog/a", "catalog/b", "catalog/c/d", "catalog/secret/e", "catalog/f"):
        registry.push_image(name, "v1", name.encode())
    gate = gate_for(pull=("catalog/*", "catalog/secret/*"), push=("catalog/c/*",), deny=("catalog/secret/**",))

    async with talk(gate, registry.endpoint) as agent:
        names = await collect(agent, size)

    assert names == ["catalog/a", "catalog/b", "catalog/c/d", "catalog/f"]


async def test_names_that_are_invalid_in_requests_are_not_listed(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A repository whose name contains words of the API, which the registry allows, is not listed."""
    registry.push_blob("catalog/tags/list", b"odd")

    async with talk(gate_for(pull=("catalog/**",)), registry.endpoint) as agent:
        names = await collect(agent, 10)

    assert "catalog/tags/list" not in names


def answering(body: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that begins a chunked page."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        await reader.read()

    return script  # type: ignore[return-value]


@pytest.mark.parametrize("body", [b"4\r\n{}  \r\n", b"200000\r\n" + b"x" * 0x200000 + b"\r\n0\r\n\r\n"])
async def test_a_page_is_bounded_in_time_and_size(talk: "Talk", scripted: "Scripted", body: bytes) -> None:
    """A page of the registry that is too long, or does not arrive in time, is answered 503."""
    gate = gate_with(GroupPolicy.build("ci"), timeouts=Timeouts(response=0.2))

    async with scripted(answering(body)) as registry, talk(gate, registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/_catalog")
        after = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert (refused.status, refused.code) == (503, "UNAVAILABLE")
    assert after.status == 200
