"""The main job: an agent that a cloud lists, and whose key it tells, pulls and pushes through localhost:5000."""

import json
from typing import TYPE_CHECKING

import pytest

from lab.ec2 import host_key_console
from lab.images import make_image, skopeo_copy
from lab.processes import until

if TYPE_CHECKING:
    from tests.acceptance.conftest import CloudField, Field

pytestmark = pytest.mark.acceptance


def test_a_multi_layer_image_travels_with_its_digest_unchanged(cloud_field: "CloudField") -> None:
    """What a builder pushes through its tunnel, a pull-only agent pulls with the same digest."""
    field = cloud_field
    builder, builder_id = field.launch("builder")
    reader, reader_id = field.launch("reader", role="ci")
    field.configure()

    field.controller.start()
    for id_ in (builder_id, reader_id):
        field.controller.wait_phase(id_, "up")
    pushed = field.push(builder, layers=5, kib_per_layer=1024)

    assert field.pull(reader) == pushed


def test_a_refused_push_prints_our_message_in_the_clients_own_output(field: "Field") -> None:
    """The client shows who was refused what, and asks for no login."""
    agent = field.boot("reader")
    field.static(agent, group="ci")
    field.controller.start()
    field.controller.wait_phase("reader", "up")

    refused = skopeo_copy(agent, make_image(field.folder / "image"), "docker://localhost:5000/team/app:1")

    assert refused.returncode != 0
    assert "tunnelmgr: group ci may not push team/app" in refused.stderr


def test_an_agent_waits_for_its_console_and_says_so(cloud_field: "CloudField") -> None:
    """Without evidence nothing is dialled; once the console tells the key, the tunnel comes by itself."""
    field = cloud_field
    agent, id_ = field.launch("late", console=False)
    field.configure()
    field.controller.start()

    waiting = field.controller.wait(
        id_, lambda facts: facts["error"] == "host-key-unknown", f"{id_} says what it lacks"
    )
    dialled_before = "Connection from" in agent.log()
    field.cloud.console(id_.removeprefix("ec2:"), host_key_console([agent.host_key]))
    up = field.controller.wait_phase(id_, "up", timeout=40)

    assert waiting["phase"] == "awaiting-identity"
    assert "console: no host key block yet" in waiting["message"]
    assert not dialled_before
    assert up["trust"] == "console"


def test_the_well_known_answer_names_the_agent_and_never_reaches_the_registry(field: "Field") -> None:
    """A hook on the agent learns who the controller takes it for."""
    agent = field.boot("builder")
    field.up(agent)

    answer = agent.run(["curl", "-fsS", "http://localhost:5000/.well-known/tunnelmgr"], check=True)

    assert json.loads(answer.stdout) == {"agent": "static:builder", "group": "builders", "controller": "registry-1"}
    assert "well-known" not in field.registry.log()


def test_the_history_of_an_agent_stands_in_order(field: "Field") -> None:
    """`show` tells how the agent came up, step by step."""
    agent = field.boot("builder")
    field.up(agent)

    shown = json.loads(field.controller.command("show", "builder", "--json").stdout)

    assert [moment["step"] for moment in shown["history"]] == ["seen", "evidence", "dialled", "bound", "probed"]


IMITATION = """
import http.server, json, socket

class Imitation(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = json.dumps({"agent": "static:builder-1", "group": "builders", "controller": "registry-1"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

Server(("::1", 5000), Imitation).serve_forever()
"""
"""A program that answers on [::1]:5000 word for word as the gate does."""


def test_the_hook_is_not_deceived_by_a_squatter_that_answers_like_the_gate(field: "Field") -> None:
    """Beside a tunnel that is up, another user's program holds the address that clients may try first: exit 69."""
    agent = field.boot("builder-1")
    squatter = agent.popen(
        ["setpriv", "--reuid", "1001", "--regid", "1001", "--clear-groups", "/usr/bin/python3", "-c", IMITATION],
        log=field.folder / "squatter.log",
    )
    until(lambda: agent.listeners(5000), "the squatter listens")
    field.up(agent)
    script = field.folder / "wait.sh"
    script.write_text(field.controller.command("hook", "wait").stdout)

    deceived = agent.run(["sh", str(script)], timeout=60)
    squatter.kill()
    squatter.wait()
    until(lambda: "::1" in agent.listeners(5000), "the tunnel holds both addresses", timeout=30)
    honest = agent.run(["sh", str(script)], timeout=60)

    assert deceived.returncode == 69, deceived.stderr
    assert "uid 1001 listens on [::1]:5000, not tunnel (uid 4242)" in deceived.stderr
    assert honest.returncode == 0, honest.stderr


def test_the_hook_ends_when_the_registry_is_there(field: "Field") -> None:
    """The script that `tunnelmgr hook wait` prints waits on a real agent until its tunnel is up."""
    agent = field.boot("builder")
    field.static(agent)
    script = field.folder / "wait.sh"
    script.write_text(field.controller.command("hook", "wait").stdout)
    waiting = agent.popen(["sh", str(script)], env={"TUNNELMGR_WAIT": "30"}, log=field.folder / "hook.log")

    field.controller.start()

    until(lambda: waiting.poll() is not None, "the hook ends", timeout=30)
    assert waiting.returncode == 0, (field.folder / "hook.log").read_text()


def test_bytes_and_channels_are_counted(field: "Field") -> None:
    """`list` shows what went through."""
    agent = field.boot("builder")
    field.up(agent)

    field.push(agent, layers=2, kib_per_layer=512)

    facts = field.controller.agent("builder")
    assert facts["bytes_from_agent"] > 1024 * 1024
    assert facts["probe_ms"] > 0
