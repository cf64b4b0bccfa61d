"""The Debian package on a machine with systemd and without a network: what it installs, starts, keeps and removes."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from lab.booted_machine import BootedMachine
from lab.processes import until
from tests.packaging.conftest import Installation, files, install, show, users

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
CONFIG = "/etc/tunnelmgr/tunnelmgr.toml"


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the package of a newer version, which differs in nothing else."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder / "root"], check=True)
    control = folder / "root/DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*", "Version: 99.0", control.read_text(), flags=re.MULTILINE))
    file = folder / "tunnelmgr_99.0_amd64.deb"
    words = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", folder / "root", file]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return file


def version(machine: BootedMachine) -> str:
    """Return the installed version of the package."""
    return machine.shell("dpkg-query --showformat '${Version}' --show tunnelmgr")


def test_the_installation_starts_and_enables_nothing(machine: BootedMachine, package: Path) -> None:
    """After the installation the program runs, and its unit is known, but neither enabled nor started."""
    shown = machine.shell("tunnelmgr --version")

    assert package.name == f"tunnelmgr_{version(machine)}_amd64.deb"
    python, _, release = version(machine).rpartition("+")
    assert shown.split() == ["tunnelmgr", python.replace("~", ".", 1)]
    assert release == "deb" + machine.shell(". /etc/os-release && echo $VERSION_ID")
    assert machine.run(["systemctl", "is-enabled", "tunnelmgr"]).stdout == "disabled\n"
    assert machine.run(["systemctl", "is-active", "tunnelmgr"]).stdout == "inactive\n"
    assert machine.run(["systemctl", "is-active", "tunnelmgr-backup.timer"]).stdout == "inactive\n"
    assert machine.shell("getent passwd tunnelmgr | cut -d: -f6-") == "/var/lib/tunnelmgr:/usr/sbin/nologin"
    assert machine.shell("id -gn tunnelmgr") == "tunnelmgr"
    assert not machine.path("/var/lib/tunnelmgr").exists()


def test_every_library_of_the_package_finds_what_it_needs(machine: BootedMachine) -> None:
    """The dependencies of the package provide each shared library that its compiled modules link to."""
    linked = machine.shell("find /opt/tunnelmgr -name '*.so*' -exec ldd {} + 2>&1")

    assert linked.count("libc.so.6") > 10
    assert "not found" not in linked


def test_an_unconfigured_daemon_does_not_start(machine: BootedMachine) -> None:
    """Without a key, `check` and the unit fail with status 2, name the key, and the unit is not started again."""
    checked = machine.run(["tunnelmgr", "check"])
    started = machine.run(["systemctl", "start", "tunnelmgr"])

    assert checked.returncode == 2
    assert "ssh.key: no such file: /etc/tunnelmgr/id_ed25519" in checked.stderr
    assert started.returncode != 0
    assert (show(machine, "ExecMainStatus"), show(machine, "NRestarts")) == ("2", "0")


def test_a_configured_daemon_runs_in_the_sandbox_of_its_unit(configured: BootedMachine) -> None:
    """With a key the unit starts, systemd makes its folders, and `check` finds nothing but the missing registry."""
    configured.run(["systemctl", "enable", "--now", "tunnelmgr"], check=True)

    checked = configured.run(["runuser", "-u", "tunnelmgr", "--", "tunnelmgr", "check", "--json"])
    failed = [row["check"] for row in json.loads(checked.stdout)["checks"] if row["result"] == "failed"]
    folders = configured.shell("stat -c '%U %a' /var/lib/tunnelmgr /var/log/tunnelmgr /run/tunnelmgr /etc/tunnelmgr")
    status = json.loads(configured.run(["tunnelmgr", "status", "--json"]).stdout)

    assert failed == ["registry"]
    assert folders.splitlines() == ["tunnelmgr 700", "tunnelmgr 750", "tunnelmgr 750", "root 755"]
    assert status["version"] == configured.shell("tunnelmgr --version").split()[1]


def test_an_upgrade_restarts_a_running_daemon_with_its_own_file_and_credentials(
    configured: BootedMachine, newer: Path
) -> None:
    """The new version replaces the daemon, whose file is another than the default one and whose key systemd passes."""
    configured.shell("mkdir /etc/systemd/system/tunnelmgr.service.d; chown root: /etc/tunnelmgr/id_ed25519")
    drop_in = "[Service]\nLoadCredential=key:/etc/tunnelmgr/id_ed25519\nEnvironment=TUNNELMGR_CONFIG=/etc/tunnelmgr/b\n"
    configured.path("/etc/systemd/system/tunnelmgr.service.d/key.conf").write_text(drop_in)
    configured.path("/etc/tunnelmgr/b").write_text('[ssh]\nkey = "credential:key"\n')
    configured.shell(f"systemctl daemon-reload; systemctl start tunnelmgr; echo 'nonsense = 1' >>{CONFIG}")
    kept = "sha256sum /etc/tunnelmgr/* && stat -c %i /var/lib/tunnelmgr/state.db"
    before, content = show(configured, "MainPID"), configured.shell(kept)

    install(configured, newer)

    assert version(configured) == "99.0"
    assert show(configured, "MainPID") not in {"0", before}
    assert configured.shell("systemctl is-active tunnelmgr") == "active"
    assert configured.shell(kept) == content


def test_an_upgrade_does_not_stop_a_daemon_whose_configuration_is_invalid(
    configured: BootedMachine, newer: Path
) -> None:
    """The old daemon continues, with its tunnels, and the upgrade names the problem and the next step."""
    configured.shell(f"systemctl start tunnelmgr; echo 'nonsense = 1' >>{CONFIG}")
    before = show(configured, "MainPID")

    done = install(configured, newer)

    printed = done.stdout + done.stderr  # dpkg's own stderr may be apt's stdout
    assert "unknown key" in printed
    assert "tunnelmgr: not restarted, because the configuration is invalid" in printed
    assert (version(configured), show(configured, "MainPID")) == ("99.0", before)


def test_an_upgrade_does_not_start_a_stopped_daemon(configured: BootedMachine, newer: Path) -> None:
    """A daemon that is enabled and stopped stays stopped."""
    configured.run(["systemctl", "enable", "tunnelmgr"], check=True)

    install(configured, newer)

    assert (version(configured), show(configured, "MainPID")) == ("99.0", "0")


def test_a_removal_stops_the_daemon_and_keeps_its_files(configured: BootedMachine) -> None:
    """`apt remove` ends the daemon and removes the program; the configuration, the key and the state stay."""
    configured.run(["systemctl", "start", "tunnelmgr"], check=True)
    before = show(configured, "MainPID")

    configured.run(["apt-get", "remove", "-y", "tunnelmgr"], check=True)

    assert not configured.path(f"/proc/{before}").exists()
    assert not configured.path("/opt/tunnelmgr").exists()
    for kept in (CONFIG, "/etc/tunnelmgr/id_ed25519", "/var/lib/tunnelmgr/state.db"):
        assert configured.path(kept).exists()


def test_a_purge_leaves_nothing(configured: BootedMachine, installed: Installation) -> None:
    """After an installation, a run and a purge, the machine has the files and users that it had before."""
    during = files(configured)
    configured.shell("systemctl enable --now tunnelmgr")

    configured.run(["apt-get", "purge", "-y", "tunnelmgr"], check=True)

    assert len(during - installed.files_before) > 4000
    backups = {"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-"}
    assert files(configured) - installed.files_before - backups == set()
    assert users(configured) == installed.users_before


def test_an_environment_that_pip_made_is_not_overwritten(bare_machine: BootedMachine, package: Path) -> None:
    """The installation refuses to mix with another one in /opt/tunnelmgr, and says what to remove."""
    machine = bare_machine
    machine.shell("mkdir -p /opt/tunnelmgr && touch /opt/tunnelmgr/pyvenv.cfg")
    machine.path("/root/tunnelmgr.deb").write_bytes(package.read_bytes())

    done = machine.run(["dpkg", "--install", "/root/tunnelmgr.deb"])

    assert done.returncode != 0
    assert "rm -rf /opt/tunnelmgr /etc/systemd/system/tunnelmgr.service" in done.stdout + done.stderr
    assert not machine.path("/opt/tunnelmgr/bin").exists()


def test_the_manual_pages_render(machine: BootedMachine) -> None:
    """`man` shows the commands and the keys, with their tables, and apropos finds both pages."""
    commands = machine.shell("man --locale=C.UTF-8 1 tunnelmgr")
    keys = machine.shell("man --locale=C.UTF-8 5 tunnelmgr.toml")

    assert re.search(r"^NAME\n +tunnelmgr +- +manage +SSH +tunnels", commands, re.MULTILINE)
    assert re.search(r"^ +explain-policy|tunnelmgr explain-policy AGENT", commands, re.MULTILINE)
    assert re.search(r"^ +3 +the daemon is not running$", commands, re.MULTILINE)
    assert re.search(r"^ +audit_required +boolean", keys, re.MULTILINE)
    assert "](" not in commands + keys
    assert machine.shell("apropos tunnelmgr | cut -d' ' -f1,2").split("\n") == ["tunnelmgr (1)", "tunnelmgr.toml (5)"]


def test_the_shells_complete_the_commands(machine: BootedMachine) -> None:
    """The shells bash, zsh and fish load the completion by themselves, and it offers the commands."""
    bash = machine.shell(
        "bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader tunnelmgr;"
        " COMP_WORDS=(tunnelmgr exp); COMP_CWORD=1; _tunnelmgr_completion tunnelmgr; echo ${COMPREPLY[@]}'"
    )
    zsh = machine.shell("zsh -f -c 'autoload -Uz compinit; compinit -u; print $_comps[tunnelmgr]'")
    fish = machine.shell("fish -c 'complete --do-complete \"tunnelmgr exp\"'")

    assert bash == "explain-policy"
    assert zsh == "_tunnelmgr"
    assert fish.split()[0] == "explain-policy"


def test_the_audit_log_is_rotated_and_written_on(configured: BootedMachine) -> None:
    """Logrotate accepts its settings, and after a rotation the daemon writes into the new file."""
    text = (
        configured.path(CONFIG)
        .read_text()
        .replace("[controller]\n", '[controller]\naudit = "/var/log/tunnelmgr/audit.jsonl"\n')
    )
    configured.path(CONFIG).write_text(text)
    configured.run(["systemctl", "start", "tunnelmgr"], check=True)
    log = configured.path("/var/log/tunnelmgr/audit.jsonl")
    until(lambda: log.exists() and log.stat().st_size, "the daemon writes its first entry")

    checked = configured.run(["logrotate", "--debug", "/etc/logrotate.conf"], check=True)
    configured.run(["logrotate", "--force", "/etc/logrotate.conf"], check=True)
    configured.run(["systemctl", "restart", "tunnelmgr"], check=True)

    until(lambda: log.stat().st_size, "the daemon writes into the new file")
    listed = configured.shell("stat -c '%n %U:%G %a' /var/log/tunnelmgr/*").splitlines()
    verified = configured.run(["runuser", "-u", "tunnelmgr", "--", "tunnelmgr", "audit", "verify", "--json"])
    assert "error" not in checked.stderr
    assert json.loads(verified.stdout)["ok"]
    assert len(json.loads(verified.stdout)["files"]) == 2
    assert listed == [
        "/var/log/tunnelmgr/audit.jsonl tunnelmgr:tunnelmgr 640",
        "/var/log/tunnelmgr/audit.jsonl.1 tunnelmgr:tunnelmgr 640",
    ]
