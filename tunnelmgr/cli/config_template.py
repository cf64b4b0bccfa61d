"""The configuration that `init` writes: the usual keys with their defaults, commented, and one source to begin with."""

import socket
from pathlib import Path

from tunnelmgr.config import DEFAULT_FILE

_TEMPLATE = """\
# tunnelmgr: which agents get a tunnel, and what they may do through it.
# After a change: `tunnelmgr check`, then `tunnelmgr reload`.
# `man tunnelmgr.toml` and docs/configuration.md describe every key.

[controller]
name = "{name}"
{state}state = "sqlite:///{folder_state}/state.db"
{state}socket = "{folder_socket}/tunnelmgr.sock"
# metrics = "127.0.0.1:9750"          # metrics, status page and health; off by default
# audit = "/var/log/tunnelmgr/audit.jsonl"   # every pull, push and refusal; else they go to the daemon's log
# drain = "30s"                       # how long transfers may continue when the daemon stops

[ssh]
user = "tunnel"
key = "{key}"
# connect_timeout = "10s"
# probe_interval = "15s"
# max_channels = 128                  # limit of open streams for each agent

# Blobs that agents pull are kept on this machine; off by default. For a registry on S3 and large fleets.
# [cache]
# path = "/var/cache/tunnelmgr"
# size = "20GiB"
# min_free = "5GiB"                   # stays free on this disk

# The default, if there is no [[forward]]:
# [[forward]]
# name = "registry"
# listen = ["127.0.0.1:5000", "[::1]:5000"]   # on the agent; loopback only
# target = "127.0.0.1:5000"                   # the registry on this machine
# protocol = "registry"                       # through the gate; "tcp" relays bytes
# A forward may also have one of these:
# push_target = "127.0.0.1:5001"              # where pushes go, if the target is a read-only replica
# upstream = "proxy"                          # if the target is a pull-through cache, as of Docker Hub

# What the agents of a group may do. Without any grant, they may pull everything and push nothing.
# [[group]]
# name = "builders"
# pull = ["**"]                       # `*` stays within a path component, `**` crosses them
# push = ["team/*"]
# minimum_trust = "console"
# require_restricted_key = true
# limits = {{ pull_rate = "400MiB", concurrent_pulls = 40 }}   # of all agents of the group together

# Where agents are discovered.
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
group = "builders"
trust = ["pinned"]
#   [[source.agent]]
#   name = "builder-1"
#   address = "192.0.2.7"
#   host_key = "ssh-ed25519 AAAA…"    # its /etc/ssh/ssh_host_ed25519_key.pub
"""


def configuration(file: Path, key: Path) -> str:
    """Return the text for a configuration at `file`; one outside /etc keeps its state and socket beside itself."""
    default = file == DEFAULT_FILE
    return _TEMPLATE.format(
        name=socket.gethostname().split(".")[0] or "controller",
        key=key,
        state="# " if default else "",
        folder_state="/var/lib/tunnelmgr" if default else file.parent,
        folder_socket="/run/tunnelmgr" if default else file.parent,
    )
