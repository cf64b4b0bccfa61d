"""Each answer of the API has exactly the fields that its model documents."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.control.fake_daemon import KEY, FakeDaemon, fleet
from tests.control.test_server import Ask
from tests.control.unix_http import request
from tunnelmgr.config.changes import ConfigChange, Preview
from tunnelmgr.control import api_models as shapes
from tunnelmgr.control.openapi import OPERATIONS, document
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.control.server import ControlServer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.health import LimitHealth
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.preview import AgentEffect, Effect
from tunnelmgr.core.registry_sharing import Sharing, SharingReport

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        (("GET", "/v1/status"), shapes.Status),
        (("GET", "/v1/agents?departed=true"), list[shapes.Agent]),
        (("GET", "/v1/transfers"), list[shapes.Transfer]),
        (("GET", "/v1/agents/builder-1"), shapes.AgentDetails),
        (("GET", "/v1/agents/builder-1/policy?action=push&repository=team/app"), shapes.Policy),
        (("POST", "/v1/agents/static:builder-2/retry"), shapes.Retry),
        (("POST", "/v1/agents/static:builder-3/release", b'{"reason": "known"}'), shapes.Release),
        (("POST", "/v1/seeds", f'{{"key": "{KEY}", "seconds": 60}}'.encode()), shapes.Seed),
        (("POST", "/v1/plan", b'{"text": ""}'), shapes.Plan),
        (("POST", "/v1/reload"), shapes.Reload),
        (("POST", "/v1/members/one/drain"), shapes.Drain),
        (("GET", "/v1/members"), shapes.Cluster),
        (("POST", "/v1/rebalance"), shapes.Rebalance),
        (("GET", "/v1/agents/nobody"), shapes.Error),
        (("POST", "/v1/plan", b"[]"), shapes.Error),
    ],
)
async def test_each_answer_has_the_fields_of_its_model(
    daemon: FakeDaemon, place: Path, ask: Ask, asked: tuple[str, ...], model: type[object]
) -> None:
    """A field that only one of the two has would be undocumented, or promised and missing."""
    effect = AgentEffect(AgentId("static:builder-1"), "builder-1", Effect.MOVES, "ci", "release")
    daemon.plan = Preview((ConfigChange("group ci: pull", ["**"], None),), (effect,), ("a remark",))
    daemon.limits = [LimitHealth("ci", "pull_rate", waiting=3, waits=9, waited_s=1.5, refused=0)]
    daemon.sharing = [SharingReport("one", "one", "127.0.0.1:5000", "0", Sharing.YES)]
    daemon.world = replace(fleet(), cluster=Cluster("one", {"one": Member("one", seen=1.0)}))

    _, answer = await ask(request, place, *asked)

    TypeAdapter(model).validate_python(answer)


def test_the_document_has_every_route(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A route of the API that the document lacks could not be found."""
    server = ControlServer(daemon, tmp_path / "socket", ApiRoutes(daemon).routes())
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in server._runner.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }

    described = {(operation.method, operation.path) for operation in OPERATIONS}
    assert routes - {("get", "/v1/openapi.json")} == described
    assert set(document()["paths"]) == {path for _, path in described} | {"/v1/events"}
