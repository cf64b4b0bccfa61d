"""The audit log of a running controller: rotated by logrotate, copied to rsyslog over TLS, verified by an auditor."""

import json
import subprocess
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.processes import until
from lab.rsyslog import Rsyslog
from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

ROTATION = """\
{file} {{
    rotate 52
    missingok
    notifempty
    compress
    delaycompress
    create 0640
}}
"""


def ask(agent: LabAgent, first: int, count: int) -> None:
    """Request manifests that do not exist, each with another tag."""
    target = f"http://localhost:5000/v2/team/app/manifests/t[{first}-{first + count - 1}]"
    words = ["curl", "-s", "-m", "50", "-o", "/dev/null", "-w", "%{http_code}\\n", target]
    assert agent.run(words, timeout=60).stdout.split() == ["404"] * count


class Audited:
    """A controller with an audit log that is sealed each second, and the tools of its operator."""

    def __init__(self, field: Field, agent: LabAgent, collector: Rsyslog) -> None:
        self.controller = field.controller
        folder = self.controller.folder
        self.file, self.key = folder / "audit.jsonl", folder / "audit_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        field.static(agent)
        head, tail = self.controller.file.read_text().split("\n[ssh]", 1)
        head += f'audit = "{self.file}"\naudit_key = "{self.key}"\naudit_seal_interval = "1s"\n'
        tail += f'[[audit_forward]]\nname = "siem"\nurl = "{collector.url}"\nca_file = "{collector.ca}"\n'
        self.controller.file.write_text(f"{head}\n[ssh]{tail}")
        self._rotation = folder / "logrotate.conf"
        self._rotation.write_text(ROTATION.format(file=self.file))
        self._rotation.chmod(0o644)

    def rotate(self) -> None:
        """Rotate the log, as cron does."""
        state = self._rotation.with_name("logrotate.state")
        subprocess.run(["logrotate", "--force", "--state", state, self._rotation], check=True)

    def copied(self) -> bool:
        """Return whether the collector has confirmed every entry."""
        (forward,) = self.controller.client.status()["audit"]["forwards"]
        return bool(forward["ok"] and forward["sequence"] and not forward["behind"])

    def entries(self, text: str) -> set[str]:
        """Return the tags of the requests in lines of the log."""
        found = [json.loads(line) for line in text.splitlines()]
        return {entry["reference"] for entry in found if entry["code"] == "request-allowed"}

    def written(self, text: str) -> bool:
        """Return whether a text is in the file that is written now."""
        return self.file.exists() and text in self.file.read_text()


def test_an_auditor_can_verify_the_log_and_its_copy(field: Field, tmp_path: Path) -> None:
    """No entry is lost while the collector is away, the log is rotated and the controller is killed.

    The log and the copy are both verified by the public key, and a change of an old file is found.
    """
    agent = field.boot("agent")
    collector = Rsyslog(field.lab.controller, tmp_path / "collector", 6514)
    audited = Audited(field, agent, collector)
    collector.start()
    audited.controller.start()
    audited.controller.wait_phase("agent", "up")
    ask(agent, 0, 30)
    until(audited.copied, "the collector has the first entries")

    collector.stop()
    for first in (100, 200, 300):
        ask(agent, first, 30)
        until(lambda first=first: audited.written(f'"t{first + 29}"'), "the requests are audited")
        audited.rotate()
    audited.controller.kill()
    audited.controller.start()
    audited.controller.wait_phase("agent", "up")
    ask(agent, 400, 30)
    assert not audited.copied()
    collector.start()
    until(audited.copied, "the collector has every entry", timeout=30)
    audited.controller.stop()

    public = str(audited.key.with_name("audit_ed25519.pub"))
    verified = audited.controller.command("audit", "verify", "--key", public, "--json")
    assert verified.returncode == 0, verified.stdout
    facts = json.loads(verified.stdout)
    last = max(file["last"] for file in facts["files"])
    assert len(facts["files"]) == 4
    assert [note for note in facts["notes"] if f"sealed to the end, sequence {last}," in note]

    collector.stop()
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(f"{line}\n" for line in dict.fromkeys(text for *_, text in collector.messages())))
    again = audited.controller.command("audit", "verify", "--key", public, "--through", str(last), str(copy))
    assert again.returncode == 0, again.stdout + again.stderr
    wanted = {f"t{first + number}" for first in (0, 100, 200, 300, 400) for number in range(30)}
    assert audited.entries(copy.read_text()) == wanted
    assert {severity for severity, *_ in collector.messages()} == {"info"}

    old = audited.file.with_name("audit.jsonl.1")
    lines = old.read_text().splitlines(keepends=True)
    old.write_text("".join(lines[:9] + lines[10:]))
    forged = audited.controller.command("audit", "verify", "--key", public)
    assert forged.returncode == 1
    assert f"{old}:10: missing: lacks sequence " in forged.stderr
