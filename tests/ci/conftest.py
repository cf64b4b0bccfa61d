"""Machines for the tests of CI systems: Jenkins' own, and agents in every state that a hook can find."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from lab.agents import LabAgent
from lab.jenkins.connection import Connection
from lab.jenkins.machine import SYSTEM_PYTHON, hide_http_clients, prepare
from lab.network import Lab
from lab.processes import until
from tests.acceptance.conftest import Field, cloud_field, lab

__all__ = ["cloud_field", "lab"]

TUNNEL_UID, NOBODY_UID = "4242", "65534"
WAIT: Final = 4
"""Seconds that a hook waits for a tunnel that does not come; its limit for another process's answer is 3."""
ANSWER: Final = """
import http.server, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[1]))
        self.send_header("Content-Length", str(len(sys.argv[2])))
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())

http.server.ThreadingHTTPServer(("127.0.0.1", 5000), Answer).serve_forever()
"""
REFUSAL: Final = '{"errors":[{"code":"DENIED","message":"tunnelmgr: agent static:refused is not admitted"}]}'
IDENTITY: Final = '{"agent": "static:taken", "group": "builders", "controller": "registry-1"}'


@dataclass
class CiSite:
    """A registry and its controller, Jenkins' machine with its key, and the agents by their state."""

    field: Field
    connections: dict[str, Connection]
    homes: Path
    listed: list[LabAgent] = field(default_factory=list)
    late: LabAgent | None = None

    def home(self, state: str) -> str:
        """Return the folder on an agent that belongs to Jenkins' user."""
        return str(self.homes / state)

    def until_late_agent_waits(self) -> None:
        """Wait until a hook runs on the late agent."""
        assert self.late is not None
        late = self.late
        hook = ["pgrep", "-f", "tunnelmgr-wait|init.sh"]
        until(lambda: late.run(hook).returncode == 0, "a hook waits on the late agent", timeout=30, pause=0.1)

    def list_late_agent(self, *, listed: bool) -> None:
        """Have the controller open the late agent's tunnel, or close it, and wait for the latter."""
        assert self.late is not None
        agents = [*self.listed, self.late] if listed else self.listed
        self.field.static(*agents)
        assert self.field.controller.command("reload").returncode == 0
        if not listed:
            self.field.controller.wait("late", lambda agent: not agent["present"], "the late agent is gone")


def answer_on_port(agent: LabAgent, uid: str, status: int, body: str) -> None:
    """Have another program of this user answer on the registry's port."""
    argv = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", SYSTEM_PYTHON, "-c", ANSWER, str(status), body]
    agent.popen(argv)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CiSite]:
    """Boot an agent for each state, and start the controller with those that have a tunnel.

    ready: it has a tunnel. late: it gets one when a test says so. never: it gets none. refused: the program on the port
    answers as a gate that refuses. taken: another user's program answers as a gate would. no-client: it has a tunnel,
    and neither curl nor wget.
    """
    folder = tmp_path_factory.mktemp("ci")
    # Not below pytest's folder, which every start of pytest closes to other users.
    with tempfile.TemporaryDirectory(prefix="homes-") as homes, Lab(folder / "lab") as lab:
        Path(homes).chmod(0o755)
        field = Field(lab, folder)
        jenkins = lab.machine("jenkins", "10.77.0.60")
        key = folder / "jenkins-key"
        jenkins.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        site = CiSite(field, {}, Path(homes))
        for state in ("ready", "late", "never", "refused", "taken", "no-client"):
            agent = field.boot(state)
            prepare(agent, Path(homes, state), key.with_suffix(".pub").read_text().strip())
            site.connections[state] = Connection(jenkins, key, agent.ip)
        site.listed = [field.agents["ready"], field.agents["no-client"]]
        site.late = field.agents["late"]
        hide_http_clients(field.agents["no-client"])
        answer_on_port(field.agents["refused"], TUNNEL_UID, 403, REFUSAL)
        answer_on_port(field.agents["taken"], NOBODY_UID, 200, IDENTITY)
        try:
            field.up(*site.listed)
            yield site
        finally:
            field.registry.stop()
