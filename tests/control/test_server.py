"""The API on the unix socket: who can connect, who can change things, and every answer."""

import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.control.fake_daemon import KEY, FakeDaemon, record, world
from tests.control.unix_http import request
from tunnelmgr.config.changes import ConfigChange, Preview
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.events import ReleaseRequested, RetryRequested, SeedAdded
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.preview import AgentEffect, Effect
from tunnelmgr.core.world import Quarantine
from tunnelmgr.errors import ConfigError

Ask = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.usefixtures("server")


# --- reading ---


async def test_status_and_agents_are_served(place: Path, ask: Ask) -> None:
    """`/v1/status` and `/v1/agents` serve the JSON that the commands print."""
    code, status = await ask(request, place, "GET", "/v1/status")
    assert (code, status["controller"], status["agents"]) == (200, "registry-1", 4)

    code, agents = await ask(request, place, "GET", "/v1/agents")
    assert (code, len(agents)) == (200, 4)

    code, agents = await ask(request, place, "GET", "/v1/agents?departed=true")
    assert (code, len(agents)) == (200, 5)


async def test_one_agent_is_served_with_its_history(place: Path, ask: Ask) -> None:
    """One agent is served by its id, its name, or an unambiguous prefix."""
    for wanted in ("static:builder-1", "builder-1", "other"):
        code, agent = await ask(request, place, "GET", f"/v1/agents/{wanted}")
        assert code == 200
        assert [moment["step"] for moment in agent["history"]] == ["seen", "evidence"]


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("/v1/agents/nobody", 404, "tunnelmgr list --all"),
        ("/v1/agents/builder", 409, "use a longer prefix"),
        ("/v2/", 404, ""),
        ("/v1/agents/%2e%2e%2fstatus", 404, ""),
    ],
)
async def test_an_unknown_agent_or_path_is_refused_as_json(
    place: Path,
    ask: Ask,
    target: str,
    code: int,
    words: str,
) -> None:
    """A refusal is JSON with a code for scripts and a message for people."""
    status, answer = await ask(request, place, "GET", target)

    assert status == code
    assert set(answer["error"]) >= {"code", "message"}
    assert words in answer["error"]["message"]


# --- changing ---


async def test_a_retry_is_reported_to_the_controller(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A retry names the agent by its whole id, however it was addressed."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-2/retry")

    assert (code, answer["agent"], answer["phase"]) == (200, "static:builder-2", "down")
    assert daemon.events == [RetryRequested(AgentId("static:builder-2"), os.geteuid())]


async def test_a_quarantined_agent_is_not_retried(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A quarantined agent cannot be retried, only released."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/retry")

    assert code == 409
    assert "tunnelmgr show static:builder-3" in answer["error"]["message"]
    assert daemon.events == []


async def test_a_release_is_reported_with_its_reason(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """A release is reported with its reason and the user's id."""
    code, _ = await ask(request, place, "POST", "/v1/agents/builder-3/release", b'{"reason": "reinstalled"}')

    assert code == 200
    assert daemon.events == [ReleaseRequested(AgentId("static:builder-3"), "reinstalled", os.geteuid())]


async def test_a_machine_named_like_another_agents_id_is_not_mistaken_for_it(
    daemon: FakeDaemon, place: Path, ask: Ask
) -> None:
    """An id finds its agent regardless of the names of other machines; an ambiguous text changes nothing."""
    held = record("builder-3", quarantine=Quarantine(1.0, "host-key-mismatch", "another key"))
    evil = [
        replace(held, agent=replace(held.agent, id=AgentId(f"ec2:i-{number}"), name=name))
        for number, name in enumerate(("static:builder-3", "builder-3", "builder", "\x1b[2Jx"))
    ]
    daemon.world = world((held, None), *((one, None) for one in evil))

    for wanted in ("static:builder-3", "builder-3"):
        _, shown = await ask(request, place, "GET", f"/v1/agents/{wanted}")
        code, _ = await ask(request, place, "POST", f"/v1/agents/{wanted}/release", b'{"reason": "looked at"}')
        assert (shown["agent"], code) == ("static:builder-3", 200)
    code, refused = await ask(request, place, "POST", "/v1/agents/builder/release", b'{"reason": "looked at"}')
    _, listed = await ask(request, place, "GET", "/v1/agents/i-")

    assert {event.agent for event in daemon.events if isinstance(event, ReleaseRequested)} == {"static:builder-3"}
    assert code == 409
    assert "matches ec2:i-2 (named builder), static:builder-3; use a longer prefix" in refused["error"]["message"]
    assert "ec2:i-3 (named ?[2Jx)" in listed["error"]["message"]


REASON_TOO_LONG = json.dumps({"reason": "x" * 1001}).encode()


@pytest.mark.parametrize("body", [None, b"{}", b'{"reason": "  "}', b'{"reason": {"a": ["x"]}}', REASON_TOO_LONG])
async def test_a_release_without_a_reason_is_refused(
    daemon: FakeDaemon, place: Path, ask: Ask, body: bytes | None
) -> None:
    """A release needs a reason that fits into a history: a text of at most 1,000 characters."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/release", body)

    assert code == 400
    assert "say why static:builder-3 is safe again" in answer["error"]["message"]
    assert daemon.events == []


async def test_a_seed_is_kept_under_a_generated_id(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """A seed is kept under a generated id with its public key and its expiry."""
    body = json.dumps({"key": KEY, "seconds": 60}).encode()

    code, answer = await ask(request, place, "POST", "/v1/seeds", body)

    (event,) = daemon.events
    assert code == 200
    assert isinstance(event, SeedAdded)
    assert (event.seed.id, event.seed.key, event.seed.holder) == (answer["seed"], KEY, None)
    assert 50 < event.seed.expires - time.time() <= 60


@pytest.mark.parametrize(
    "asked",
    [
        {"key": "ssh-ed25519", "seconds": 60},
        {"key": f"{KEY[:-8]}", "seconds": 60},
        {"key": "-----BEGIN OPENSSH PRIVATE KEY-----", "seconds": 60},
        {"key": KEY, "seconds": 0},
        {"key": KEY, "seconds": "NaN"},
        {"key": KEY, "seconds": "inf"},
        {"key": KEY, "seconds": 31 * 86400},
        {"key": KEY},
        {"seconds": 60},
        [],
    ],
)
async def test_an_invalid_seed_is_refused(daemon: FakeDaemon, place: Path, ask: Ask, asked: object) -> None:
    """An invalid seed is refused and not kept, and neither is a private key sent by mistake."""
    code, answer = await ask(request, place, "POST", "/v1/seeds", json.dumps(asked).encode())

    assert code == 400
    assert "PRIVATE" not in answer["error"]["message"]
    assert daemon.events == []


async def test_an_agent_that_is_not_quarantined_is_not_released(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """An agent that is not quarantined cannot be released, which would forget its key."""
    code, _ = await ask(request, place, "POST", "/v1/agents/builder-1/release", b"{}")

    assert code == 409
    assert daemon.events == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"reason"', b"null", b"\xff", b"1e999"])
async def test_a_body_that_is_not_an_object_is_a_bad_request(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    body: bytes,
) -> None:
    """A body that is not a JSON object releases nothing."""
    code, answer = await ask(request, place, "POST", "/v1/agents/builder-3/release", body)

    assert (code, answer["error"]["code"]) == (400, "bad-request")
    assert daemon.events == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (("POST", "/v1/seeds", b"[" * 500_000), 400),
        (("POST", "/v1/seeds", b'{"a":' * 12_000), 400),
        (("POST", "/v1/seeds", b"[" * 2_000_000), 413),
        (("POST", "/v1/seeds", b'{"key": "x", "seconds": 1' + b"0" * 4000 + b"}"), 400),
        (("POST", "/v1/seeds", b'{"key": "x", "seconds": 1' + b"0" * 5000 + b"}"), 400),
        (("POST", "/v1/seeds", None), 400),
        (("POST", "/v1/agents/builder-3/release", b"[" * 500_000), 400),
        (("DELETE", "/v1/seeds", None), 405),
        (("POST", "/v1/nothing", b"{}"), 404),
        (("GET", "/", None), 404),
    ],
)
async def test_every_refusal_is_json(
    daemon: FakeDaemon, place: Path, ask: Ask, asked: tuple[str, str, bytes | None], code: int
) -> None:
    """Bodies that are too deep, too long or not JSON, and unknown paths, are refused with a code and a message."""
    status, answer = await ask(request, place, *asked)

    assert status == code
    assert set(answer["error"]) == {"code", "message"}
    assert daemon.events == []


async def test_an_internal_error_costs_one_request_and_is_json(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """An unexpected failure is answered with 500 as JSON, and the next request is served."""
    daemon.bad = RuntimeError("unforeseen")  # type: ignore[assignment]

    assert await ask(request, place, "POST", "/v1/reload") == (
        500,
        {"error": {"code": "internal", "message": "internal error; the daemon's log has the traceback"}},
    )
    assert (await ask(request, place, "GET", "/v1/status"))[0] == 200


@pytest.mark.parametrize("change", ["retry", "release"])
async def test_a_name_that_matches_no_agent_or_several_changes_nothing(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    change: str,
) -> None:
    """A name that matches no agent or several retries and releases nothing."""
    assert (await ask(request, place, "POST", f"/v1/agents/nobody/{change}"))[0] == 404
    assert (await ask(request, place, "POST", f"/v1/agents/builder/{change}"))[0] == 409
    assert (await ask(request, place, "GET", f"/v1/agents/builder-1/{change}"))[0] == 405
    assert daemon.events == []


async def test_a_reload_answers_with_its_remarks(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
) -> None:
    """A reload answers with remarks about what takes effect at the next start only."""
    daemon.remarks = ["controller.socket has changed and takes effect at the next start"]

    assert await ask(request, place, "POST", "/v1/reload") == (200, {"reloaded": True, "remarks": daemon.remarks})


async def test_a_plan_is_answered_with_what_would_change(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """The daemon gets the text of the file and its name, and changes nothing."""
    effect = AgentEffect(AgentId("static:builder-1"), "builder-1", Effect.LEAVES, "ci", "")
    daemon.plan = Preview((ConfigChange("group ci: pull", ["**"], None),), (effect,), ("a remark",))

    answer = await ask(request, place, "POST", "/v1/plan", b'{"text": "[ssh]", "file": "new.toml"}')

    agent = {"agent": "static:builder-1", "name": "builder-1", "effect": "leaves", "before": "ci", "after": None}
    change = {"key": "group ci: pull", "before": ["**"], "after": None}
    assert answer == (200, {"changes": [change], "agents": [agent], "remarks": ["a remark"]})
    assert daemon.previewed == ("[ssh]", "new.toml")
    assert daemon.reloads == 0


@pytest.mark.parametrize("body", [b"{}", b'{"text": 7}', b'{"text": "", "file": 7}'])
async def test_a_plan_without_a_text_is_refused(daemon: FakeDaemon, place: Path, ask: Ask, body: bytes) -> None:
    """The message shows the expected form."""
    code, answer = await ask(request, place, "POST", "/v1/plan", body)

    assert (code, daemon.previewed) == (400, ("", ""))
    assert '{"text": "[controller]…", "file": "new.toml"}' in answer["error"]["message"]


@pytest.mark.parametrize(("path", "body"), [("/v1/reload", None), ("/v1/plan", b'{"text": ""}')])
async def test_an_invalid_configuration_is_answered_with_every_problem(
    daemon: FakeDaemon,
    place: Path,
    ask: Ask,
    path: str,
    body: bytes | None,
) -> None:
    """A refused reload or plan is answered with every problem and the file's name."""
    daemon.bad = ConfigError(["source[0].poll: missing", "ssh.key: there is no file"], file="tunnelmgr.toml")
    code, answer = await ask(request, place, "POST", path, body)

    assert code == 422
    assert answer["error"]["code"] == "config"
    assert answer["error"]["problems"] == ["source[0].poll: missing", "ssh.key: there is no file"]
    assert answer["error"]["file"] == "tunnelmgr.toml"


async def test_the_members_are_listed(daemon: FakeDaemon, place: Path, ask: Ask) -> None:
    """The members are there as a whole, and in short with the status; without a cluster there are none."""
    alone = await ask(request, place, "GET", "/v1/members")
    none = await ask(request, place, "GET", "/v1/status")
    two = Member("two", zone="b", version="1.2", alive=False, seen=12.34)
    daemon.world = replace(daemon.world, cluster=Cluster("one", {"one": Member("one", seen=1.0), "two": two}))

    _, status = await ask(request, place, "GET", "/v1/status")
    code, members = await ask(request, place, "GET", "/v1/members")

    assert (alone[0], none[1]["members"]) == (409, [])
    short = {"name": "two", "zone": "b", "version": "1.2", "ok": False, "agents": 0, "heartbeat_age_s": 12.3}
    assert status["members"][1] == short
    assert (code, members) == (200, status["cluster"])
