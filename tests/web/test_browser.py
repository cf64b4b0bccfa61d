"""The status page in a real Chromium: hostile names, no script, live updates, a restart, accessibility, a phone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.control.fake_daemon import NOW, FakeDaemon, record, up
from tests.web.served import REFUSAL, TRANSFER, busy_daemon, large_fleet
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Quarantine, SourceView, World
from tunnelmgr.web.model import ROWS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.web.conftest import PageServer

pytestmark = pytest.mark.acceptance  # it needs Chromium

HOSTILE = (
    "<script>alert(1)</script></title></td></script><svg/onload=alert(1)><b>bold</b>&lt;i&gt;",
    "javascript:alert(1)//' onmouseover='alert(1)\"><img src=x onerror=alert(1)><a href=//evil style=top:0>x</a>",
    "{{ 7*7 }}{% raw %}{# #}${7*7}../..%2f?a=b&c#d",
)
"""Texts that would run, navigate or change the page if one field were not escaped."""
SHORTENED = {"#agents", "#transfers", "#refusals"}
expect.set_options(timeout=15_000)
PHONE = {"width": 360, "height": 740}
PAGES = ("", "agents/static%3Abuilder-1", "agents/static%3Abuilder-3", "agents/nobody")


@contextmanager
def opened(browser: "Browser", url: str, **options: Any) -> "Iterator[tuple[Page, list[str]]]":  # noqa: ANN401
    """Open a page in a profile of its own, and return it with what went wrong on it: the list grows."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    origin = "/".join(url.split("/")[:3]) + "/"
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss())[0])
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(origin) else wrong.append(request.url))
    page.goto(url)
    yield page, wrong
    context.close()


def hostile_world(text: str) -> World:
    """Return a world in which every field that comes from outside has this text."""
    trust = HostTrust(Method.LABEL, ("ssh-ed25519 AAAA",), text)
    mark = Quarantine(NOW, "host-key-mismatch", text)
    history = (HistoryEntry(NOW, text, text), HistoryEntry(NOW + 1, "released", text, uid=1000, count=3, since=NOW))
    entries = []
    for number in range(3):
        one = record(f"a{number}", trust=trust, history=history, quarantine=mark if number == 0 else None)
        id_ = AgentId(f"static:{number}{text}")
        addresses = (text,)
        agent = replace(one.agent, id=id_, name=text, group=text, source=text, addresses=addresses, incarnation=text)
        entries.append((replace(one, agent=agent), up() if number == 1 else None))
    members = {text: Member(text, zone=text, version=text), "two": Member("two", alive=False)}
    return replace(
        FakeDaemon().world,
        sources={text: SourceView(text, ok=False, error=text, feed_ok=False, feed_error=text)},
        records={one.agent.id: one for one, _ in entries},
        tunnels={one.agent.id: status for one, status in entries if status is not None},
        cluster=Cluster(text, members, error=text),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_and_never_run(
    browser: "Browser", server: "PageServer", daemon: FakeDaemon, text: str
) -> None:
    """A text in every field of every part is shown as it is: no dialog, no violation of the policy, no request."""
    daemon.world = hostile_world(text)
    daemon.registry = RegistryHealth(reachable=False, loopback_only=False, error=text)
    daemon.store_error = text
    facts = {"agent": AgentId(f"static:1{text}"), "group": text, "repository": text, "reference": text}
    daemon.running = [replace(TRANSFER, **facts, action=text)]  # type: ignore[arg-type]
    daemon.refused = [replace(REFUSAL, **facts, rule=text, action=text)]  # type: ignore[arg-type]

    with opened(browser, server.url) as (page, wrong):
        expect(page.locator("#live")).to_have_text("Live")
        for part in ("#summary", "#quarantines", "#agents", "#transfers", "#refusals", "#sources", "#members"):
            expect(page.locator(part)).to_contain_text(text[:40] if part in SHORTENED else text)
        page.locator("#agents tbody th a").first.hover()
        page.locator("#agents tbody th a").first.click()
        expect(page.locator("h1")).to_have_text(text)
        expect(page.locator("#history")).to_contain_text(text)
        expect(page.locator("#live")).to_have_text("Live")
        page.go_back()
        page.get_by_role("searchbox").fill(text)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#agents tbody tr")).to_have_count(3)

        assert wrong == []
        assert page.locator("main script, main img, main b, main i, [style], [onload], [onmouseover]").count() == 0


def test_it_works_without_a_script(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """With JavaScript off, the page is complete: selections, sorts, pages and an agent's page are plain links."""
    daemon.world = large_fleet(250)
    with opened(browser, server.url, java_script_enabled=False) as (page, _):
        expect(page.locator("#agents tbody tr")).to_have_count(ROWS)
        page.get_by_role("link", name="Next").click()
        expect(page.locator("#agents h2")).to_contain_text("of 250")
        page.locator("select[name=phase]").select_option("quarantined")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#agents tbody tr")).to_have_count(3)
        page.locator("#agents thead").get_by_role("link", name="Agent").click()
        expect(page.locator("#agents tbody th").first).to_contain_text("builder-00007")
        page.locator("#agents tbody th a").first.click()
        expect(page.locator("#agent")).to_contain_text("tunnelmgr release static:builder-00007")
        expect(page.locator("#live")).to_have_text("Reload the page to update it.")


def test_changes_appear_by_themselves(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """An agent that comes up changes its row without a reload, and the focus stays on the link that had it."""
    with opened(browser, server.url) as (page, wrong):
        expect(page.locator("#live")).to_have_text("Live")
        page.evaluate("document.body.dataset.loaded = 'once'")
        row = page.locator("#agents tbody tr", has_text="builder-2")
        expect(row).to_contain_text("down")
        row.get_by_role("link").focus()
        daemon.world = daemon.world.with_tunnel(AgentId("static:builder-2"), up())
        expect(row).to_contain_text("up")
        expect(row.get_by_role("link")).to_be_focused()

        assert page.evaluate("document.body.dataset.loaded") == "once"
        assert wrong == []


def test_ages_grow_without_news_from_the_server(browser: "Browser", server: "PageServer") -> None:
    """An age is by the server's clock, and grows on a page of which nothing else changes."""
    with opened(browser, server.url) as (page, wrong):
        page.clock.install()
        page.reload()
        expect(page.locator("#live")).to_have_text("Live")
        age = page.locator("#agents tbody time").first
        before = age.inner_text()
        page.clock.fast_forward("03:00:00")

        expect(age).to_have_text("3 h")
        assert before != "3 h"
        assert wrong == []


def test_a_selection_of_text_is_not_lost(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """A part in which text is selected is replaced only after the selection has ended."""
    with opened(browser, server.url) as (page, _):
        expect(page.locator("#live")).to_have_text("Live")
        command = page.locator("#quarantines code")
        command.click()
        selected = page.evaluate("String(getSelection())")
        record_ = daemon.world.records[AgentId("static:builder-3")]
        other = replace(record_, quarantine=Quarantine(NOW, "host-key-shared", "another reason"))
        daemon.world = daemon.world.with_record(other).with_tunnel(AgentId("static:builder-2"), up())
        expect(page.locator("#agents tbody tr", has_text="builder-2")).to_contain_text("up")
        assert page.evaluate("String(getSelection())") == selected
        assert selected.startswith("tunnelmgr release static:builder-3")
        page.evaluate("getSelection().removeAllRanges()")
        expect(page.locator("#quarantines")).to_contain_text("another reason")


def test_a_link_stays_under_a_pressed_button(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """A part that changes while a button of the mouse is down is replaced after the click, which is not lost."""
    with opened(browser, server.url) as (page, _), opened(browser, server.url) as (other, _):
        expect(page.locator("#live")).to_have_text("Live")
        expect(other.locator("#live")).to_have_text("Live")
        page.locator("#agents tbody tr", has_text="builder-2").get_by_role("link").hover()
        page.mouse.down()
        for group in ("one", "two", "three"):  # the other page shows that changes are sent
            before = daemon.world.records[AgentId("static:builder-2")]
            daemon.world = daemon.world.with_record(replace(before, agent=replace(before.agent, group=group)))
            expect(other.locator("#agents")).to_contain_text(group)
        page.mouse.up()
        expect(page.locator("h1")).to_have_text("builder-2")


def test_it_connects_again_after_a_restart(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """While the daemon is away the page says so; after its restart it is live again and up to date."""
    with opened(browser, server.url) as (page, _):
        expect(page.locator("#live")).to_have_text("Live")
        server.stop()
        expect(page.locator("#live")).to_have_text("Not connected, trying again", timeout=20_000)
        daemon.world = daemon.world.with_tunnel(AgentId("static:builder-2"), up())
        server.start()
        expect(page.locator("#live")).to_have_text("Live", timeout=20_000)
        expect(page.locator("#agents tbody tr", has_text="builder-2")).to_contain_text("up")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: "Browser", server: "PageServer", daemon: FakeDaemon, scheme: str) -> None:
    """On every page, in both colour schemes, axe finds no violation at all."""
    busy = busy_daemon()
    daemon.running, daemon.refused, daemon.samples = busy.running, busy.refused, busy.samples
    daemon.world = replace(
        busy.world, cluster=Cluster("one", {"one": Member("one"), "two": Member("two", alive=False)})
    )
    for path in PAGES:
        with opened(browser, server.url + path, color_scheme=scheme) as (page, _):
            if path != "agents/nobody":
                expect(page.locator("#live")).to_have_text("Live")
            results = Axe().run(page)

            found = [(rule["id"], rule["impact"], rule["nodes"][0]["html"]) for rule in results.response["violations"]]
            assert found == []
            assert len(results.response["passes"]) > 10


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [320, PHONE["width"]])
def test_a_phone_needs_no_horizontal_scrolling(
    browser: "Browser", server: "PageServer", daemon: FakeDaemon, path: str, width: int
) -> None:
    """At the width of a phone, nothing is wider than the screen, also with long names."""
    busy = busy_daemon()
    daemon.running, daemon.refused, daemon.samples = busy.running, busy.refused, busy.samples
    daemon.refused = [replace(REFUSAL, repository="a-very-long-name-of-a-repository/" * 4)]
    with opened(browser, server.url + path, viewport={**PHONE, "width": width}) as (page, _):
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(browser: "Browser", server: "PageServer") -> None:
    """The first stop of the keyboard skips to the content; every link and field is reached in order."""
    with opened(browser, server.url) as (page, _):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator(".tile a").first).to_be_focused()
        for role, name in (("table", "Agents"), ("search", "Agents"), ("main", None), ("banner", None)):
            expect(page.get_by_role(role, name=name).first).to_be_visible()  # type: ignore[arg-type]


def test_five_thousand_agents_are_usable(browser: "Browser", server: "PageServer", daemon: FakeDaemon) -> None:
    """With 5,000 agents a page has a bounded number of rows, a search finds one agent, and updates still arrive."""
    daemon.world = large_fleet(5000)
    with opened(browser, server.url) as (page, wrong):
        expect(page.locator("#agents tbody tr")).to_have_count(ROWS)
        page.get_by_role("searchbox").fill("builder-04999")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#agents tbody tr")).to_have_count(1)
        expect(page.locator("#live")).to_have_text("Live")
        daemon.world = daemon.world.with_record(
            replace(daemon.world.records[AgentId("static:builder-04999")], present=False)
        ).with_tunnel(AgentId("static:builder-04999"), up())
        expect(page.locator("#agents tbody tr")).to_contain_text("gone")

        assert wrong == []
