"""The units under a real systemd: restarts, reloads, stops, credentials, backups and the sandbox."""

import json
import re
import signal
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.booted_machine import BootedMachine
from lab.network import Lab
from lab.processes import until
from tests.packaging.conftest import show

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
CONFIG = "/etc/tunnelmgr/tunnelmgr.toml"
KEY = "/etc/tunnelmgr/id_ed25519"
RESTART = 60.0
"""Seconds that a restart may take: the watchdog's interval, RestartSec and the start, on a busy machine."""

SERVER = """
import pathlib, socketserver, time
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"first,")
        deadline = time.monotonic() + 60
        while not pathlib.Path("/run/release").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.request.sendall(b"last")
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", 5000), Answer).serve_forever()
"""
"""A server that sends the rest of its answer when the test says so."""

RELAYED = """
[controller]
drain = "30s"
[[forward]]
name = "relay"
listen = ["127.0.0.1:5000"]
target = "127.0.0.1:5000"
protocol = "tcp"
[[source]]
name = "office"
type = "static"
trust = ["pinned"]
  [[source.agent]]
  name = "builder-1"
  address = "{address}"
  host_key = "{host_key}"
"""


@pytest.fixture
def running(configured: BootedMachine) -> BootedMachine:
    """Start the configured daemon."""
    configured.shell("systemctl start tunnelmgr")
    return configured


def signal_daemon(machine: BootedMachine, sig: signal.Signals) -> str:
    """Send a signal to the daemon's process and return its id."""
    pid = show(machine, "MainPID")
    machine.shell(f"kill -{sig.name.removeprefix('SIG')} {pid}")
    return pid


def is_restarted(machine: BootedMachine, before: str) -> bool:
    """Return whether another process is the daemon, and is ready."""
    return show(machine, "MainPID") not in {"0", before} and show(machine, "ActiveState") == "active"


def journal(machine: BootedMachine, *options: str) -> str:
    """Return the messages of the daemon's unit."""
    return machine.shell(" ".join(["journalctl --unit tunnelmgr --output cat", *options]))


def test_a_daemon_that_hangs_is_killed_by_the_watchdog_and_restarted(running: BootedMachine) -> None:
    """A stopped process notifies no watchdog, so systemd ends it and starts another one."""
    before = signal_daemon(running, signal.SIGSTOP)

    until(lambda: is_restarted(running, before), "systemd restarts the daemon", timeout=RESTART)

    assert "Failed with result 'watchdog'" in journal(running)


def test_a_daemon_that_is_killed_is_restarted(running: BootedMachine) -> None:
    """After SIGKILL another process serves the socket, with the state of the first."""
    before = signal_daemon(running, signal.SIGKILL)

    until(lambda: is_restarted(running, before), "systemd restarts the daemon", timeout=RESTART)

    assert show(running, "NRestarts") == "1"
    assert running.run(["tunnelmgr", "list"]).returncode == 0


def test_repeated_crashes_are_slowed(running: BootedMachine) -> None:
    """Where systemd has the setting, the pause before a restart grows with each crash."""
    if not (first := show(running, "RestartUSecNext")):
        pytest.skip("systemd is older than 254 and ignores RestartSteps=")
    before = signal_daemon(running, signal.SIGKILL)
    until(lambda: is_restarted(running, before), "systemd restarts the daemon", timeout=RESTART)
    before = signal_daemon(running, signal.SIGKILL)
    until(lambda: is_restarted(running, before), "systemd restarts the daemon again", timeout=RESTART)

    assert first == "5s"
    assert show(running, "RestartUSecNext") not in {"", "5s"}


def test_a_reload_of_an_invalid_file_fails_and_changes_nothing(running: BootedMachine) -> None:
    """`systemctl reload` fails, the daemon continues with the old file, and the journal has the problem as an error."""
    pid = show(running, "MainPID")
    running.shell(f"systemctl reload tunnelmgr; cp {CONFIG} /root; echo 'nonsense = 1' >>{CONFIG}")

    failed = running.run(["systemctl", "reload", "tunnelmgr"])
    errors, pid_after = journal(running, "--priority err"), show(running, "MainPID")
    running.shell(f"cp /root/tunnelmgr.toml {CONFIG} && systemctl reload tunnelmgr")

    assert failed.returncode != 0
    assert (pid_after, show(running, "ActiveState")) == (pid, "active")
    assert re.search(r"^error: .*nonsense", errors, re.MULTILINE)
    assert "daemon started" in journal(running)
    assert "daemon started" not in errors


def test_a_state_of_a_newer_version_stops_the_start_once(running: BootedMachine) -> None:
    """After a downgrade the daemon ends with status 4 and the reason, and systemd does not start it again."""
    running.shell("systemctl stop tunnelmgr")
    running.shell("""python3 -c 'import sqlite3
with sqlite3.connect("/var/lib/tunnelmgr/state.db") as state: state.execute("PRAGMA user_version = 99")'""")

    started = running.run(["systemctl", "start", "tunnelmgr"])

    assert started.returncode != 0
    assert [show(running, name) for name in ("ExecMainStatus", "SubState", "NRestarts")] == ["4", "failed", "0"]
    assert "was written by a newer tunnelmgr (schema 99" in journal(running)


def test_a_stop_lets_a_transfer_finish(configured: BootedMachine, lab: Lab, tmp_path: Path) -> None:
    """A stop waits for the transfer of an agent, within controller.drain, and the transfer is complete."""
    agent = boot_agent(configured, lab)
    configured.popen(["python3", "-c", SERVER])
    configured.shell("systemctl start tunnelmgr")
    until(lambda: phase(configured) == "up", "the agent has its tunnel")
    received = tmp_path / "received"
    client = agent.popen(["busybox", "nc", "127.0.0.1", "5000"], log=received)
    until(lambda: received.exists() and received.read_text() == "first,", "the transfer has started")

    configured.shell("systemctl stop --no-block tunnelmgr")
    until(lambda: "draining" in journal(configured), "the daemon drains")
    configured.shell("touch /run/release")

    until(lambda: show(configured, "ActiveState") == "inactive", "the daemon has stopped", timeout=RESTART)
    assert client.wait(10) == 0
    assert received.read_text() == "first,last"
    assert show(configured, "Result") == "success"


def test_a_key_that_only_root_may_read_is_passed_as_a_credential(configured: BootedMachine, lab: Lab) -> None:
    """With LoadCredential= the daemon logs in to an agent with a key whose file it cannot read itself."""
    boot_agent(configured, lab)
    configured.shell(f"chown root: {KEY}; mkdir /etc/systemd/system/tunnelmgr.service.d")
    configured.path("/etc/systemd/system/tunnelmgr.service.d/key.conf").write_text(
        f"[Service]\nLoadCredential=key:{KEY}\n"
    )
    configured.shell(f"""sed -i 's|^key = .*|key = "credential:key"|' {CONFIG}; systemctl daemon-reload""")

    configured.shell("systemctl start tunnelmgr")

    until(lambda: phase(configured) == "up", "the agent has its tunnel")
    assert configured.run(["runuser", "-u", "tunnelmgr", "--", "cat", KEY]).returncode != 0


def test_the_state_is_backed_up_and_can_be_restored(running: BootedMachine) -> None:
    """The timer is active while the daemon is, and its service writes an archive that only the daemon's user reads."""
    active = running.shell("systemctl is-active tunnelmgr-backup.timer")
    running.shell("systemctl start tunnelmgr-backup.service")
    archive = running.shell("ls /var/lib/tunnelmgr/backups/*")
    facts = running.shell(f"stat -c '%U %a' {archive}")

    running.shell("systemctl stop tunnelmgr; rm /var/lib/tunnelmgr/state.db*")
    restored = running.shell(f"runuser -u tunnelmgr -- tunnelmgr state import {archive}")
    stopped = running.run(["systemctl", "is-active", "tunnelmgr-backup.timer"]).stdout
    running.shell("systemctl start tunnelmgr")

    assert active == "active"
    assert re.fullmatch(r"/var/lib/tunnelmgr/backups/state-\d{8}T\d{6}Z\.jsonl", archive)
    assert facts == "tunnelmgr 600"
    assert restored == "0 agents and 0 seeds imported"
    assert stopped == "inactive\n"


def test_a_timer_that_was_disabled_stays_disabled(configured: BootedMachine) -> None:
    """An operator who disables the backups finds them disabled after a restart of the daemon."""
    configured.shell("systemctl disable tunnelmgr-backup.timer; systemctl start tunnelmgr")

    assert configured.run(["systemctl", "is-active", "tunnelmgr-backup.timer"]).stdout == "inactive\n"


def test_the_units_have_the_documented_exposure(machine: BootedMachine) -> None:
    """`systemd-analyze verify` has no complaint, and `security` rates the exposure of both services 1.3 at most."""
    units = ("tunnelmgr.service", "tunnelmgr-backup.service")
    for unit in units:
        rated = machine.run(["systemd-analyze", "security", "--no-pager", "--threshold=13", unit])
        assert rated.returncode == 0, rated.stdout[-300:]
        assert float(*re.findall(rf"Overall exposure level for {unit}: (\S+)", rated.stdout)) > 0
    verified = machine.run(["systemd-analyze", "verify", *units, "tunnelmgr-backup.timer"])
    complaints = [line for line in verified.stderr.splitlines() if "tunnelmgr" in line]
    unknown = [line for line in complaints if "RestartSteps" in line or "RestartMaxDelaySec" in line]
    assert complaints == unknown


def boot_agent(machine: BootedMachine, lab: Lab) -> LabAgent:
    """Boot an agent that trusts the daemon's key, and configure the daemon for it."""
    line = machine.shell("tunnelmgr init --print authorized-keys")
    agent = lab.agent("builder-1", "10.77.0.20", line)
    text = RELAYED.format(address=agent.ip, host_key=agent.host_key)
    machine.path(CONFIG).write_text(f'{text}\n[ssh]\nkey = "{KEY}"\n')
    return agent


def phase(machine: BootedMachine) -> str:
    """Return the phase of the agent."""
    listed = machine.run(["tunnelmgr", "list", "--json"])
    agents = json.loads(listed.stdout) if listed.returncode == 0 else []
    return str(agents[0]["phase"]) if agents else ""
