"""The texts that `tunnelmgr hook` and `tunnelmgr init` print for an agent."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.hooks.gate_answers import gate
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConfigError
from tunnelmgr.hooks import KINDS, SYSCTL, authorized_keys_line, cloud_init, key_file, render, sshd_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hooks.conftest import Hook, Localhost

LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGsd8n/FQSIWCQjx4SUMGJfQ3hC2UUiW4xSjfJo4GV1K"
LINE = (
    'restrict,port-forwarding,permitlisten="127.0.0.1:5000",permitlisten="[::1]:5000",'
    f'permitopen="127.0.0.1:5000",permitopen="[::1]:5000" {KEY}'
)
EC2_USER_DATA = 16384
ROOT = Path(__file__).parents[2]


def parse(text: str) -> dict[str, Any]:
    """Read a #cloud-config as cloud-init does."""
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def written(text: str, path: str) -> dict[str, Any]:
    """Return one entry of write_files."""
    (entry,) = [entry for entry in parse(text)["write_files"] if entry["path"] == path]
    return dict(entry)


def test_the_authorized_keys_line_is_exact() -> None:
    """Sshd compares the addresses of the line as text, so each character matters."""
    assert authorized_keys_line(LISTEN, f"{KEY}\n") == LINE


def test_a_keys_comment_is_kept() -> None:
    """The comment in the line shows an operator whose key it is."""
    assert authorized_keys_line(LISTEN, f"{KEY} tunnelmgr@registry-1").endswith(" tunnelmgr@registry-1")


def test_openssh_reads_the_line(tmp_path: Path) -> None:
    """OpenSSH finds the options and the key in the line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "authorized_keys").write_text(authorized_keys_line(LISTEN, public) + "\n")

    fingerprints = [
        subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / name], check=True, capture_output=True).stdout.split()[1]
        for name in ("key.pub", "authorized_keys")
    ]

    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    "key",
    ["", "ssh-ed25519", f'command="id" {KEY}', f"{KEY}\n{KEY}", f"{KEY} a\nb", "-----BEGIN OPENSSH PRIVATE KEY-----",
     "AAAA BBBB"],
)  # fmt: skip
def test_an_invalid_public_key_is_refused(key: str) -> None:
    """A second line or an option in the place of the key would widen what the agent allows."""
    with pytest.raises(ConfigError):
        authorized_keys_line(LISTEN, key)


def test_a_line_without_listen_addresses_is_refused() -> None:
    """Without permitlisten, sshd would allow every address."""
    with pytest.raises(ConfigError):
        authorized_keys_line((), KEY)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost", 'x"'])  # noqa: S104 (refused is the point)
def test_a_line_beyond_loopback_is_refused(host: str) -> None:
    """The registry is never offered to a network."""
    with pytest.raises(ConfigError):
        authorized_keys_line((Endpoint(host, 5000),), KEY)


def test_cloud_init_makes_a_user_that_only_forwards() -> None:
    """The user has no shell, no password, is not locked, and has no key file of its own."""
    users = parse(cloud_init(LINE))["users"]

    assert users[0] == "default"
    assert users[1] == {
        "name": "tunnel",
        "gecos": "tunnelmgr",
        "shell": "/usr/sbin/nologin",
        "lock_passwd": False,
        "passwd": "*",
    }
    assert ["usermod", "--password", "*", "tunnel"] in parse(cloud_init(LINE))["runcmd"]


def test_cloud_init_puts_the_key_where_only_root_writes() -> None:
    """The key file belongs to root, because a key that can write its own file could give itself any right."""
    entry = written(cloud_init(LINE, user="carrier"), "/etc/ssh/authorized_keys.d/carrier")

    assert entry == {
        "path": "/etc/ssh/authorized_keys.d/carrier",
        "owner": "root:root",
        "permissions": "0644",
        "content": f"{LINE}\n",
    }


@pytest.mark.parametrize("file", ["docs/agents.md", "ansible/roles/agent/templates/sshd.conf.j2"])
def test_every_recipe_has_the_same_settings(file: str) -> None:
    """The settings by hand, by Ansible and by cloud-init protect an agent equally."""
    wanted = [line.strip() for line in sshd_settings("tunnel").splitlines() if not line.startswith("#")]
    text = (ROOT / file).read_text().replace("{{ agent_user }}", "tunnel")
    lines = [line.strip() for line in text.splitlines()]

    assert lines[lines.index("Match User tunnel") :][: len(wanted)] == wanted


@pytest.mark.parametrize("file", ["docs/agents.md", "ansible/roles/agent/templates/sysctl.conf.j2"])
def test_every_recipe_has_the_same_sysctl(file: str) -> None:
    """A stale connection ends soon on every agent, even if a program keeps using it."""
    setting = SYSCTL.splitlines()[-1]

    assert setting in (ROOT / file).read_text().replace("{{ agent_tcp_retries2 }}", "5")
    assert written(cloud_init(LINE), "/etc/sysctl.d/60-tunnelmgr.conf")["content"] == SYSCTL
    assert ["sysctl", "-q", "-p", "/etc/sysctl.d/60-tunnelmgr.conf"] in parse(cloud_init(LINE))["runcmd"]


def test_cloud_init_installs_the_script(hook: Hook, localhost: Localhost) -> None:
    """The compressed script is the output of `tunnelmgr hook wait` without most comments, and works."""
    entry = written(cloud_init(LINE), "/usr/local/bin/tunnelmgr-wait")

    assert entry["permissions"] == "0755"
    assert entry["encoding"] == "gz+b64"
    installed = gzip.decompress(base64.b64decode(entry["content"])).decode()
    assert installed.partition("\n\n")[0] == render("wait").partition("\n\n")[0]
    assert commands(installed) == commands(render("wait")) == commands(hook.text)

    localhost.v4.open(gate)
    hook.text = installed
    assert hook.run().code == 0


def commands(script: str) -> list[str]:
    """Return the lines of a script that are not comments."""
    return [line for line in script.splitlines() if not line.lstrip().startswith("#")]


def test_cloud_init_is_the_same_every_time() -> None:
    """Equal configurations yield equal user-data, so that a launch template does not change."""
    assert cloud_init(LINE) == cloud_init(LINE)


@pytest.mark.parametrize("kind", ["cloud-init", "hetzner"])
def test_user_data_leaves_room_for_more(kind: str) -> None:
    """EC2 accepts 16 KB of user-data, and ours is under 9."""
    text = render(kind, authorized_keys_line=LINE)

    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < 9 * 1024 < EC2_USER_DATA


@pytest.mark.parametrize("comment", ["it's # mine: yes", '"quoted"', "{user}", "%s"])
def test_any_comment_survives_yaml(comment: str) -> None:
    """Quotes, hashes and braces in the key's comment are kept."""
    line = f"{LINE} {comment}"

    assert written(cloud_init(line), key_file("tunnel"))["content"] == f"{line}\n"


@pytest.mark.parametrize("line", [KEY, "", f"{LINE}\nssh-ed25519 AAAA", f"{LINE}\x1b[2J"])
def test_an_unrestricted_line_is_refused(line: str) -> None:
    """Only a restricted line with one key is accepted for an agent."""
    with pytest.raises(ConfigError):
        cloud_init(line)


@pytest.mark.parametrize("user", ["root", "", "-x", "a b", "a\nb", "x" * 33, "Tunnel"])
def test_an_invalid_user_is_refused(user: str) -> None:
    """An invalid user name is refused, because it goes into sshd's configuration and a command."""
    with pytest.raises(ConfigError):
        cloud_init(LINE, user=user)


def test_sshd_applies_the_settings_to_that_user_only(tmp_path: Path) -> None:
    """A real sshd applies the drop-in to the user, over the main file, and to no other user."""
    drop_in = tmp_path / "10-tunnelmgr.conf"
    drop_in.write_text(written(cloud_init(LINE, user="carrier"), "/etc/ssh/sshd_config.d/10-tunnelmgr.conf")["content"])
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host"], check=True)
    main = tmp_path / "sshd_config"
    main.write_text(
        f"Include {drop_in}\nHostKey {tmp_path / 'host'}\nGatewayPorts yes\nAllowTcpForwarding no\nPort 2222\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what Debian's unit does before it starts sshd
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or pytest.fail("sshd is not installed")

    def effective(user: str) -> dict[str, str]:
        spec = f"user={user},host=agent,addr=192.0.2.7"
        shown = subprocess.run([sshd, "-T", "-f", main, "-C", spec], check=True, capture_output=True, text=True).stdout
        return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)

    ours, others = effective("carrier"), effective("somebody")

    assert (ours["clientaliveinterval"], ours["clientalivecountmax"]) == ("5", "2")
    assert (ours["gatewayports"], ours["allowtcpforwarding"]) == ("no", "yes")
    assert (ours["forcecommand"], ours["allowstreamlocalforwarding"]) == ("/usr/sbin/nologin", "no")
    assert ours["authorizedkeysfile"] == "/etc/ssh/authorized_keys.d/%u"
    assert {ours[what] for what in ("allowagentforwarding", "x11forwarding", "permittty", "permittunnel")} == {"no"}
    assert (others["clientaliveinterval"], others["gatewayports"]) == ("0", "yes")
    assert (others["allowtcpforwarding"], others["forcecommand"]) == ("no", "none")


def test_every_kind_renders() -> None:
    """Every listed kind can be rendered, and begins with the line that its reader expects."""
    for kind in KINDS:
        text = render(kind, authorized_keys_line=LINE)

        assert text.startswith(("#!/bin/sh\n", "#cloud-config\n")), kind
        assert text.endswith("\n"), kind


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    """The error for an unknown kind lists the known ones."""
    with pytest.raises(ConfigError, match="wait, ec2, ssh"):
        render("windows")


def test_user_data_without_a_key_says_what_is_missing() -> None:
    """User-data without a key is refused here instead of failing on the agent."""
    with pytest.raises(ConfigError, match="tunnelmgr init"):
        render("hetzner")


def test_the_ec2_script_ends_an_instance_with_a_foreign_listener(
    hook: Hook, localhost: Localhost, shell: list[str]
) -> None:
    """A build must not start if another process answers on the registry's port."""
    hook.shell, hook.text = shell, render("ec2")
    hook.hurry()
    localhost.v4.open(lambda _path: [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])

    outcome = hook.run()

    assert outcome.code == 69, outcome.err
    assert outcome.out == ""


def test_the_ec2_script_keeps_an_instance_without_a_tunnel(hook: Hook, shell: list[str]) -> None:
    """A missing tunnel or a missing HTTP client does not cause new instances."""
    hook.shell, hook.text, hook.wait = shell, render("ec2"), "1"

    late = hook.run()
    (hook.directory / "bin" / "curl").unlink()
    hook.client = ""
    misconfigured = hook.run()

    assert late.code == 0, late.err
    assert misconfigured.code == 0, misconfigured.err
    assert "neither curl nor wget" in misconfigured.err


def test_the_ssh_script_leaves_the_channel_alone(
    hook: Hook, localhost: Localhost, filled_stdin: tuple[int, Callable[[], str]]
) -> None:
    """The script for the SSH launcher uses neither stdin nor stdout, which belong to Jenkins."""
    hook.text = render("ssh")
    stdin, what_is_left = filled_stdin
    localhost.v4.open(lambda _path: [b'HTTP/1.1 403 Forbidden\r\n\r\n{"errors": [{"message": "tunnelmgr: no"}]}'])

    outcome = hook.run("--soft", stdin=stdin)

    assert outcome.code == 77, outcome.err
    assert outcome.out == ""
    assert what_is_left() == "for another program\n"


@pytest.mark.parametrize("kind", ["wait", "ec2", "ssh"])
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is a developer's tool")
def test_shellcheck_accepts_every_kind(kind: str) -> None:
    """Each kind is plain POSIX sh as it is printed."""
    done = subprocess.run(
        ["shellcheck", "-S", "warning", "-s", "sh", "-"],
        input=render(kind),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == ""
