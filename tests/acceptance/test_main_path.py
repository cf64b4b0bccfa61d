"""The main job: an agent listed by a cloud, with its key on the console, pulls and pushes through localhost:5000."""

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
    """An image that a builder pushes through its tunnel is pulled by a pull-only agent with the same digest."""
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
    """The client prints the group, the action and the repository, and does not ask for a login."""
    agent = field.boot("reader")
    field.static(agent, group="ci")
    field.controller.start()
    field.controller.wait_phase("reader", "up")

    refused = skopeo_copy(agent, make_image(field.folder / "image"), "docker://localhost:5000/team/app:1")

    assert refused.returncode != 0
    assert "tunnelmgr: group ci may not push team/app" in refused.stderr


def test_an_agent_waits_for_its_console(cloud_field: "CloudField") -> None:
    """Without evidence the agent is not dialled; when the console has the key, the tunnel comes up by itself."""
    field = cloud_field
    agent, id_ = field.launch("late", console=False)
    field.configure()
    field.controller.start()

    waiting = field.controller.wait(
        id_, lambda facts: facts["error"] == "host-key-unknown", f"{id_} shows the missing evidence"
    )
    dialled_before = "Connection from" in agent.log()
    field.cloud.console(id_.removeprefix("ec2:"), host_key_console([agent.host_key]))
    up = field.controller.wait_phase(id_, "up", timeout=40)

    assert waiting["phase"] == "awaiting-identity"
    assert "console: no host key block yet" in waiting["message"]
    assert not dialled_before
    assert up["trust"] == "console"


def test_the_well_known_answer_names_the_agent_and_never_reaches_the_registry(field: "Field") -> None:
    """The gate answers the well-known path with the agent's name and group, and the registry gets no request."""
    agent = field.boot("builder")
    field.up(agent)

    answer = agent.run(["curl", "-fsS", "http://localhost:5000/.well-known/tunnelmgr"], check=True)

    assert json.loads(answer.stdout) == {"agent": "static:builder", "group": "builders", "controller": "registry-1"}
    assert "well-known" not in field.registry.log()


def test_the_history_of_an_agent_is_in_order(field: "Field") -> None:
    """`show` lists the steps in which the agent came up."""
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
"""A program that gives exactly the gate's answer on [::1]:5000."""


def test_the_hook_detects_another_process_that_answers_like_the_gate(field: "Field") -> None:
    """If another user's process listens on the address that clients may try first, the hook exits with 69."""
    agent = field.boot("builder-1")
    imitation = agent.popen(
        ["setpriv", "--reuid", "1001", "--regid", "1001", "--clear-groups", "/usr/bin/python3", "-c", IMITATION],
        log=field.folder / "imitation.log",
    )
    until(lambda: agent.listeners(5000), "the other process listens")
    field.up(agent)
    script = field.folder / "wait.sh"
    script.write_text(field.controller.command("hook", "wait").stdout)

    deceived = agent.run(["sh", str(script)], timeout=60)
    imitation.kill()
    imitation.wait()
    until(lambda: "::1" in agent.listeners(5000), "the tunnel has both addresses", timeout=30)
    honest = agent.run(["sh", str(script)], timeout=60)

    assert deceived.returncode == 69, deceived.stderr
    assert "uid 1001 listens on [::1]:5000, not tunnel (uid 4242)" in deceived.stderr
    assert honest.returncode == 0, honest.stderr


def test_the_hook_exits_when_the_registry_answers(field: "Field") -> None:
    """The script of `tunnelmgr hook wait` runs on a real agent until the tunnel is up."""
    agent = field.boot("builder")
    field.static(agent)
    script = field.folder / "wait.sh"
    script.write_text(field.controller.command("hook", "wait").stdout)
    waiting = agent.popen(["sh", str(script)], env={"TUNNELMGR_WAIT": "30"}, log=field.folder / "hook.log")

    field.controller.start()

    until(lambda: waiting.poll() is not None, "the hook ends", timeout=30)
    assert waiting.returncode == 0, (field.folder / "hook.log").read_text()


def test_bytes_and_channels_are_counted(field: "Field") -> None:
    """`list` shows the bytes and channels of an agent."""
    agent = field.boot("builder")
    field.up(agent)

    field.push(agent, layers=2, kib_per_layer=512)

    facts = field.controller.agent("builder")
    assert facts["bytes_from_agent"] > 1024 * 1024
    assert facts["probe_ms"] > 0
