"""The rendering of trust methods and of event queues."""

from dataclasses import replace

import pytest

from tests.cli.test_render import lines
from tests.control.fake_daemon import KEY, FakeDaemon, agents_view, record, up, world
from tunnelmgr.cli import render
from tunnelmgr.control.views import agent_view, history_view, status_view
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method

CERTIFIED = HostTrust(Method.AUTHORITY, (KEY,), "certificate of authority images, serial 7")


def test_show_prints_the_evidence_and_the_accepted_login_key() -> None:
    """`show` prints why an agent is trusted, and which of our keys it accepted during a rotation."""
    one = record("builder-1", trust=CERTIFIED)
    status = up(login_key="SHA256:ours")
    view = agent_view(one, status, world((one, status)).rules.forwards, None) | {"history": history_view(one)}

    printed = lines(render.agent(view))

    assert any(
        line.endswith(f"authority (certificate of authority images, serial 7)  {fingerprint(KEY)}") for line in printed
    )
    assert any(line.split() == ["our", "key", "SHA256:ours"] for line in printed)


def test_status_counts_the_agents_by_trust_method() -> None:
    """`status` shows how many agents each trust method has identified."""
    agents = [record("a", trust=CERTIFIED), record("b"), record("c"), record("d", trust=None)]
    daemon = FakeDaemon(world((agents[0], up()), *((agent, None) for agent in agents[1:])))
    facts = status_view(daemon.world, daemon.health())

    printed = lines(render.status(facts, agents_view(daemon.world, {})))

    assert facts["trust"] == {"authority": 1, "pinned": 2}
    assert any(line.split(maxsplit=1)[:2] == ["trust", "1 by authority, 2 by pinned"] for line in printed if line)


@pytest.mark.parametrize(
    ("feed", "words", "wrong"),
    [
        ({}, "", False),
        ({"feed_ok": True}, ", events received", False),
        ({"feed_ok": False, "feed_error": "AccessDenied"}, ", event queue FAILED", True),
    ],
)
def test_an_event_queue_is_shown_with_its_source(feed: dict[str, object], words: str, wrong: bool) -> None:
    """A failing event queue is a problem with its reason, although polling continues."""
    agent = record("builder-1")
    calm = world((agent, up()))
    daemon = FakeDaemon(replace(calm, sources={"office": replace(calm.sources["office"], **feed)}))
    facts, agents = status_view(daemon.world, daemon.health()), agents_view(daemon.world, {})

    line = next(line for line in lines(render.status(facts, agents)) if line.startswith("source"))

    assert line.endswith(f"ago{words}")
    assert render.problems(facts, agents) == (
        ["source office: its event queue fails, polling continues: AccessDenied"] if wrong else []
    )
