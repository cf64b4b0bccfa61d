"""The configuration that `init` writes: every key with its default, commented, and one source to begin with."""

import socket
from pathlib import Path

from tunnelmgr.config import DEFAULT_FILE

_TEMPLATE = """\
# tunnelmgr: which agents get a tunnel, and what they may do through it.
# After a change: `tunnelmgr check`, then `tunnelmgr reload`. Every key is described in docs/configuration.md.

[controller]
name = "{name}"
{state}state = "sqlite:///{folder_state}/state.db"
{state}socket = "{folder_socket}/tunnelmgr.sock"
# metrics = "127.0.0.1:9750"          # Prometheus; without it nothing listens
# drain = "30s"                       # how long transfers may go on when the daemon stops

[ssh]
user = "tunnel"
key = "{key}"
# connect_timeout = "10s"
# probe_interval = "15s"
# max_channels = 128                  # streams an agent may have open at once

# Without any [[forward]] it is this one:
# [[forward]]
# name = "registry"
# listen = ["127.0.0.1:5000", "[::1]:5000"]   # on the agent; loopback only
# target = "127.0.0.1:5000"                   # the registry here
# protocol = "registry"                       # through the gate; "tcp" relays bytes

# What a group may do. Without grants: pull everything, push nothing.
# [[group]]
# name = "builders"
# pull = ["**"]                       # `*` stays within a path component, `**` crosses them
# push = ["team/*"]
# minimum_trust = "console"

# Where agents come from.
# [[source]]
# name = "jenkins-ec2"
# type = "ec2"
# group = "ci"
# regions = ["eu-west-1"]
# filters = {{ "tag:jenkins_slave_type" = ["demand", "spot"] }}
# address = "private"                 # or "public"
# trust = ["console"]
# poll = "15s"

[[source]]
name = "office"
type = "static"
group = "ci"
trust = ["pinned"]
#   [[source.agent]]
#   name = "builder-1"
#   address = "192.0.2.7"
#   host_key = "ssh-ed25519 AAAA…"    # its /etc/ssh/ssh_host_ed25519_key.pub
"""


def configuration(file: Path, key: Path) -> str:
    """Return the text for a configuration at `file`; one outside /etc keeps its state and socket beside itself."""
    usual = file == DEFAULT_FILE
    return _TEMPLATE.format(
        name=socket.gethostname().split(".")[0] or "controller",
        key=key,
        state="# " if usual else "",
        folder_state="/var/lib/tunnelmgr" if usual else file.parent,
        folder_socket="/run/tunnelmgr" if usual else file.parent,
    )
