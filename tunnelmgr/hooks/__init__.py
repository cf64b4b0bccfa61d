"""The texts for an agent: the script that waits for its tunnel, and the set-up of the user for the controller's login.

The script is `wait.sh`, one POSIX sh file; each kind of hook wraps it for one way of starting agents. This package only
renders texts and has no side effects.
"""

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from textwrap import indent, wrap
from types import MappingProxyType
from typing import Final

from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConfigError

KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "wait": "the plain script, which waits until the registry is ready",
        "ec2": "init script for the Jenkins EC2 plugin",
        "ssh": "for the Jenkins SSH launcher, with the line to put before its start command",
        "cloud-init": "user-data that creates the user, its sshd settings and the script",
        "hetzner": "the same for the Jenkins Hetzner plugin",
    }
)
"""Every kind of hook, with a description of one line."""

NEED_KEY: Final = frozenset({"cloud-init", "hetzner"})
"""The kinds that create the agent's user, and therefore need the controller's public key."""

_INSTALLED: Final = "/usr/local/bin/tunnelmgr-wait"
_PUBLIC_KEY: Final = re.compile(
    r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}(?: [^\x00-\x1f\x7f]*)?"
)
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

_EC2_HEAD: Final = """\
#!/bin/sh
# Init script for the Jenkins EC2 plugin: waits for the tunnel to the registry before the agent starts.
#
# The plugin runs it once for each instance, without a time limit. If it exits non-zero, the agent is not launched, and
# newer versions terminate the instance. A new instance would not solve a problem of the policy or of the image. So this
# script fails only with 69, if another process answers on the registry's port, where a build would get foreign images.
# Any other problem is printed on stderr, and the agent starts; a build that needs the registry then fails with its own
# error.
# To be stricter, replace the last lines by `exit "$code"`.
(
set -- --soft
"""
_EC2_TAIL: Final = """\
)
code=$?
[ "$code" != 69 ] || exit 69
exit 0
"""

_SSH_HEAD: Final = f"""\
#!/bin/sh
# For the Jenkins SSH launcher ("Launch agents via SSH"): waits for the tunnel before the agent starts.
#
# 1. Put this file into the agent's image as {_INSTALLED}, mode 0755.
# 2. Set the node's "Prefix Start Agent Command" to this, with the && at its end:
#
#        {_INSTALLED} --soft &&
#
# The launcher's stdin and stdout are the channel to Jenkins. This script leaves both alone; it writes to stderr only.
# With --soft, the agent also starts if the tunnel is not up in time; without it, Jenkins launches it again.
# Keep "Connection Timeout in Seconds" above TUNNELMGR_WAIT (120).
#
"""

_SSHD_SETTINGS: Final = """\
# A lost tunnel frees its port after 5 s x 2. The registry is offered on loopback only.
# The key file belongs to root, so that the key cannot give itself more rights. The key can run neither a command nor
# sftp, which a shell of nologin alone would not prevent if sshd has it built in.
Match User {user}
    AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u
    ClientAliveInterval 5
    ClientAliveCountMax 2
    GatewayPorts no
    AllowTcpForwarding yes
    AllowStreamLocalForwarding no
    AllowAgentForwarding no
    X11Forwarding no
    PermitTTY no
    PermitTunnel no
    PermitUserRC no
    ForceCommand /usr/sbin/nologin
Match all
"""

SYSCTL: Final = """\
# A lost tunnel frees its port within about 15 s, even if a program keeps using it (default: 16 minutes).
net.ipv4.tcp_retries2 = 5
"""
"""The kernel setting of an agent (`tcp(7)`); it is also in docs/agents.md and in the Ansible role."""

_CLOUD_INIT: Final = """\
#cloud-config
# Prepares an agent for tunnelmgr: the user that the controller logs in as, sshd's settings for it, and the script that
# waits for the tunnel. Needs OpenSSH 8.2 or newer. Nothing here is secret.
users:
  - default
  - name: {user}
    gecos: tunnelmgr
    shell: /usr/sbin/nologin
    # `*` matches no password, like `!`; but `!` also locks the account, and sshd without PAM then refuses its keys.
    lock_passwd: false
    passwd: '*'
write_files:
  - path: {key_file}
    owner: root:root
    permissions: '0644'
    content: |
      {line}
  - path: /etc/ssh/sshd_config.d/10-tunnelmgr.conf
    owner: root:root
    permissions: '0644'
    content: |
{settings}
  - path: /etc/sysctl.d/60-tunnelmgr.conf
    owner: root:root
    permissions: '0644'
    content: |
{sysctl}
  - path: {installed}
    owner: root:root
    permissions: '0755'
    # The output of `tunnelmgr hook wait` without most comments, compressed: EC2 accepts 16 KB of user-data.
    encoding: gz+b64
    content: |
{script}
runcmd:
  - [usermod, --password, '*', {user}]
  - [sysctl, -q, -p, /etc/sysctl.d/60-tunnelmgr.conf]
  # Ubuntu starts sshd at the first connection; before that there is no process to reload, and no folder for the check.
  - mkdir -p /run/sshd && sshd -t &&
    {{ systemctl try-reload-or-restart ssh.service || systemctl try-reload-or-restart sshd.service; }}
"""

_HETZNER_HEAD: Final = f"""\
# User-data for the Jenkins Hetzner plugin. The plugin waits for SSH, not for user-data, and runs no init script.
# So an agent may start before its tunnel is up: let each pipeline that pulls begin with `{_INSTALLED}`.
# The plugin waits one minute until the server runs, and then tries SSH ten times, 10 s apart; raise its boot deadline
# if your image needs longer.
"""


def render(kind: str, *, authorized_keys_line: str | None = None, user: str = "tunnel") -> str:
    """Return the whole text of one hook.

    The kinds that create the user `user` need `authorized_keys_line`, from that function. Raises ConfigError.
    """
    match kind:
        case "wait":
            return _wait_script()
        case "ec2":
            return _EC2_HEAD + _without_shebang(_wait_script()) + _EC2_TAIL
        case "ssh":
            return _SSH_HEAD + _without_shebang(_wait_script())
        case "cloud-init" | "hetzner":
            if authorized_keys_line is None:
                raise ConfigError([f"hook {kind} needs the controller's key; set ssh.key, or run `tunnelmgr init`"])
            text = cloud_init(authorized_keys_line, user)
            if kind == "hetzner":
                first, rest = text.split("\n", 1)
                text = f"{first}\n{_HETZNER_HEAD}{rest}"
            return text
        case _:
            raise ConfigError([f"unknown kind of hook {kind!r}; use {', '.join(KINDS)}"])


def authorized_keys_line(listen: Sequence[Endpoint], public_key: str) -> str:
    """Return the line that allows the key to hold and probe these listeners, and nothing else.

    sshd compares `permitlisten` as text, and without any it would allow every address, so `listen` must not be empty
    (sshd(8), "AUTHORIZED_KEYS FILE FORMAT"). Raises ConfigError.
    """
    problems = [] if listen else ["forward: the agents' key needs at least one listen address"]
    problems += [f"forward.listen: {one} is not loopback" for one in listen if not is_loopback(one.host)]
    key = public_key.strip()
    if not _PUBLIC_KEY.fullmatch(key):
        problems.append("ssh.key: the public key is not a line of `TYPE BASE64 COMMENT`")
    if problems:
        raise ConfigError(problems)
    options = ["restrict", "port-forwarding"]
    options += [f'permitlisten="{one}"' for one in listen]
    options += [f'permitopen="{one}"' for one in listen]
    return f"{','.join(options)} {key}"


def key_file(user: str) -> str:
    """Return the path of the controller's key on an agent: a file of root, which the user itself cannot change."""
    return f"/etc/ssh/authorized_keys.d/{user}"


def sshd_settings(user: str) -> str:
    """Return the drop-in for an agent's sshd, for the user that the controller logs in as (`sshd_config(5)`)."""
    return _SSHD_SETTINGS.format(user=user)


def cloud_init(line: str, user: str = "tunnel") -> str:
    """Return user-data that prepares an agent whose authorized_keys is `line`.

    Source of the keys' meaning: cloud-init's modules `users_groups`, `write_files` and `runcmd`. Raises ConfigError.
    """
    problems = []
    if not _USER.fullmatch(user) or user == "root":
        problems.append(f"ssh.user: {user!r} is not a valid name of an unprivileged user")
    if not line.isprintable() or not line.startswith("restrict,"):
        problems.append("authorized_keys: the line must be printable and begin with `restrict,`")
    if problems:
        raise ConfigError(problems)
    # A fixed time, so that the same script yields the same user-data.
    packed = base64.b64encode(gzip.compress(_without_comments(_wait_script()).encode(), mtime=0)).decode()
    return _CLOUD_INIT.format(
        user=user,
        line=line,
        key_file=key_file(user),
        settings=indent(sshd_settings(user).rstrip("\n"), " " * 6),
        sysctl=indent(SYSCTL.rstrip("\n"), " " * 6),
        installed=_INSTALLED,
        script=indent("\n".join(wrap(packed, 100)), " " * 6),
    )


def _wait_script() -> str:
    return (files(__name__) / "wait.sh").read_text(encoding="utf-8")


def _without_comments(script: str) -> str:
    """Remove the comment lines except the script's head; no text in it has a line that looks like a comment."""
    head, end, body = script.partition("\n\n")
    return head + end + "".join(line for line in body.splitlines(keepends=True) if not line.lstrip().startswith("#"))


def _without_shebang(script: str) -> str:
    return script.split("\n", 1)[1]
