"""The checks of `tunnelmgr check` before the daemon starts; a failed one says what to do."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from tunnelmgr.config import DEFAULT_CACHE, AgentSource, CacheConfig, Config
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, pull_through_caches, push_registries, registries
from tunnelmgr.daemon.api_checks import api_problems
from tunnelmgr.daemon.audit_checks import collector_error, sealing_key
from tunnelmgr.daemon.cluster_checks import disagreements
from tunnelmgr.daemon.prepared import PinsKeys, build
from tunnelmgr.daemon.sharing_checks import SharingCheck, check_sharing
from tunnelmgr.daemon.tracing import tracing_error
from tunnelmgr.dataplane.fast_path import fast_path_status
from tunnelmgr.dataplane.socket_options import missing_kernel_settings
from tunnelmgr.errors import ConfigError, ControlError, DiscoveryError, StoreError
from tunnelmgr.gate.registry_check import is_loopback_only, listen_addresses, registry_error
from tunnelmgr.ssh.key_files import load_key
from tunnelmgr.ssh.login import load_login
from tunnelmgr.store.connect import check_database, sqlite_file
from tunnelmgr.trust.lookups import ConsoleReader

MADE_BY_UNIT = frozenset({*(Path(f"/{place}/tunnelmgr") for place in ("var/lib", "run", "var/log")), DEFAULT_CACHE})
"""What StateDirectory=, RuntimeDirectory=, LogsDirectory= and CacheDirectory= make at a start (systemd.exec(5))."""
Result = Literal["ok", "failed", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    result: Result
    message: str


@runtime_checkable
class PermissionChecker(Protocol):
    """A source that can check its permission to read consoles."""

    def console_permission(self, agent: Agent) -> str | None:
        """Return which permission is missing, None if none is; blocks."""
        ...


async def check(config: Config) -> list[Finding]:
    """Check everything that a start depends on."""
    findings = [*_keys(config), *await asyncio.to_thread(_state, config), _place("socket", config.controller.socket)]
    if config.cache is not None:
        findings.append(_cache(config.cache))
    findings += await asyncio.to_thread(lambda: [*_audit(config), *_tracing(config), *_api(config)])
    forwards = config.forwards()
    for registry in registries(forwards):
        findings += await _registry(registry)
    for registry in push_registries(forwards):
        findings += await _registry(registry, "registry for pushes")
    for cache in pull_through_caches(forwards):
        findings += await _registry(cache, "pull-through cache")
    if sqlite_file(config.controller.state) is None:
        findings += _sharing(await asyncio.to_thread(check_sharing, config))
    findings += [Finding("groups", "ok", _groups(config))]
    findings += [Finding("path to agents", "note", lack) for lack in missing_kernel_settings()]
    findings.append(_fast_path())
    findings += await asyncio.to_thread(_rotation, config)
    for source_config in config.source:
        try:
            source = build(source_config)
            snapshot = await asyncio.to_thread(source.discover)
        except (ConfigError, DiscoveryError) as failed:
            reason = failed.reason if isinstance(failed, DiscoveryError) else str(failed)
            findings.append(Finding(f"source {source_config.name}", "failed", reason))
            continue
        findings += _source(source, snapshot)
        findings += _collisions(config, snapshot)
        findings += await asyncio.to_thread(lambda: list(_trust(source, snapshot)))  # noqa: B023 - awaited at once
    return findings


def _keys(config: Config) -> list[Finding]:
    try:
        login = load_login(config.ssh)
    except ConfigError as bad:
        return [Finding("ssh key", "failed", problem) for problem in bad.problems]
    found = [
        Finding(name, "ok", f"{file}, {key.get_algorithm()} {key.get_fingerprint()}")
        for name, file, key in (
            ("ssh key", config.ssh.key, login.key),
            ("next ssh key", config.ssh.next_key, login.next_key),
        )
        if key is not None
    ]
    if login.agent is not None:
        found.append(_ssh_agent(login.agent))
    return found


def _ssh_agent(socket: Path) -> Finding:
    if socket.is_socket():
        return Finding("ssh agent", "ok", str(socket))
    return Finding("ssh agent", "failed", f"{socket} is not a socket; start the ssh-agent, or correct ssh.agent")


def _rotation(config: Config) -> list[Finding]:
    """Report which agents accept the next key, by their last connection, if the daemon runs."""
    if config.ssh.next_key is None:
        return []
    try:
        wanted = load_key(config.ssh.next_key).get_fingerprint()
        agents = [agent for agent in ControlClient(config.controller.socket).agents() if agent["present"]]
    except (ConfigError, ControlError):
        return []
    lacking = sorted(agent["agent"] for agent in agents if agent["login_key"] != wanted)
    message = f"next key accepted by {len(agents) - len(lacking)} of {_count(len(agents))}"
    return [Finding("key rotation", "note", message + (f"; not yet: {', '.join(lacking)}" if lacking else ""))]


def _state(config: Config) -> list[Finding]:
    """Check that the state can be written: a file in its folder, a database that answers and whose members agree."""
    settings = config.controller
    if (file := sqlite_file(settings.state)) is not None:
        return [_place("state", file)]
    try:
        facts = check_database(settings.state, settings.password_file)
    except StoreError as wrong:
        return [Finding("state", "failed", str(wrong))]
    wrong_in_cluster = [Finding("cluster", "failed", problem) for problem in disagreements(config, facts)]
    return [Finding("state", "ok", facts.summary), *wrong_in_cluster]


def _audit(config: Config) -> Iterator[Finding]:
    """Check that the audit log can be written and sealed, and that its collectors can be reached."""
    settings = config.controller
    if settings.audit is not None:
        yield _place("audit log", settings.audit)
    if settings.audit_key is not None:
        try:
            yield Finding("audit key", "ok", sealing_key(settings))
        except ConfigError as bad:
            yield from (Finding("audit key", "failed", problem) for problem in bad.problems)
    for entry in config.audit_forward:
        wrong, name = collector_error(entry), f"audit collector {entry.name}"
        yield Finding(name, "failed", wrong) if wrong else Finding(name, "ok", entry.url)


def _tracing(config: Config) -> Iterator[Finding]:
    """Check that the collector takes traces."""
    if config.tracing is not None:
        wrong = tracing_error(config.tracing)
        yield Finding("tracing", "failed", wrong) if wrong else Finding("tracing", "ok", config.tracing.url)


def _api(config: Config) -> Iterator[Finding]:
    """Check the files and the address of the API for other machines."""
    if config.api is not None:
        problems = list(api_problems(config.api, is_running=_is_running(config)))
        yield from (Finding("api", "failed", problem) for problem in problems)
        if not problems:
            yield Finding("api", "ok", f"{config.api.listen}, {config.api.certificate}")


def _is_running(config: Config) -> bool:
    try:
        return ControlClient(config.controller.socket).alive()
    except ControlError:
        return False


def _cache(config: CacheConfig) -> Finding:
    """Check that the cache's folder can be written, on a disk with room."""
    place = _place("cache", config.path / "incoming")
    folder = config.path
    while not folder.exists():
        folder = folder.parent
    if place.result == "ok" and (free := shutil.disk_usage(folder).free) <= config.min_free:
        lack = f"{folder} has {free >> 20} MiB free, and cache.min_free is {config.min_free >> 20} MiB"
        return Finding("cache", "failed", f"{lack}: nothing would be cached")
    return place


def _sharing(found: SharingCheck) -> list[Finding]:
    name = "shared registry"
    return [
        *(Finding(name, "failed", problem) for problem in found.problems),
        *(Finding(name, "note", note) for note in found.notes),
        *([Finding(name, "ok", f"one with that of {', '.join(found.shared)}")] if found.shared else []),
    ]


def _place(name: str, file: Path) -> Finding:
    """Check that a file can be created at its path."""
    folder = file.parent
    if not folder.exists() and folder in MADE_BY_UNIT:
        return Finding(name, "note", f"{folder} does not exist yet; the systemd unit creates it")
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            name,
            "failed",
            f"uid {os.geteuid()} cannot write to {folder}; run as the daemon's user, or change its owner",
        )
    if file.exists() and not os.access(file, os.W_OK):
        return Finding(
            name, "failed", f"uid {os.geteuid()} cannot write {file}; run as the daemon's user, or change its owner"
        )
    return Finding(name, "ok", str(file))


async def _registry(target: Endpoint, name: str = "registry") -> list[Finding]:
    """Check that the registry answers and, if anything listens there, that only this machine can reach it."""
    wrong = await registry_error(target)
    if wrong is None:
        return [Finding(name, "ok", f"{target} answers"), _reach(target)]
    answers = Finding(name, "failed", wrong)
    return [answers, _reach(target)] if listen_addresses(target.port) else [answers]


def _reach(target: Endpoint) -> Finding:
    """Check that the registry listens on loopback only."""
    name = "registry on loopback only"
    only = is_loopback_only(target)
    if only is None:
        return Finding(name, "note", f"cannot be checked from here: what listens on {target} is in another network")
    return Finding(name, "ok", "yes") if only else Finding(name, "failed", _exposure(target))


def _exposure(target: Endpoint) -> str:
    if not is_loopback(target.host):
        return f"{target} is not loopback: others can read the traffic, and reach the registry too"
    where = ", ".join(listen_addresses(target.port))
    return f"it listens on {where}: anyone who can reach this machine can pull; set http.addr to {target}"


def _fast_path() -> Finding:
    path = fast_path_status()
    if path.active:
        return Finding("fast path", "ok", "on: bulk data bypasses asyncssh")
    return Finding(
        "fast path",
        "note",
        f"off: {path.reason}; tunnels work but are slower. Install the versions in requirements.lock",
    )


def _groups(config: Config) -> str:
    return ", ".join(sorted(config.policies().groups)) or "none: no agent may do anything"


def _source(source: AgentSource, snapshot: Snapshot) -> list[Finding]:
    name = f"source {source.config.name}"
    if snapshot.failures:
        return [Finding(name, "failed", "; ".join(snapshot.failures))]
    return [Finding(name, "ok", _count(len(snapshot.agents)))]


def _count(agents: int) -> str:
    return f"{agents} agent" if agents == 1 else f"{agents} agents"


def _collisions(config: Config, snapshot: Snapshot) -> list[Finding]:
    """Find agents on this machine whose forward would listen on a port that is in use here."""
    found = []
    for agent in snapshot.agents:
        if not any(address == "localhost" or is_loopback(address) for address in agent.addresses):
            continue
        for forward in config.forwards():
            taken = [endpoint for endpoint in forward.listen if _taken(endpoint)]
            found += [
                Finding(
                    "forward",
                    "failed",
                    f"{agent.id} is this machine, where {endpoint} is in use; choose another address for `listen`",
                )
                for endpoint in taken
            ]
    return found


def _taken(endpoint: Endpoint) -> bool:
    """Return whether a listener on this address, or on every address, exists here."""
    return any(host == endpoint.host or ip_address(host).is_unspecified for host in listen_addresses(endpoint.port))


def _trust(source: AgentSource, snapshot: Snapshot) -> Iterator[Finding]:
    name = f"trust of {source.config.name}"
    available: dict[Method, Callable[[], bool]] = {
        Method.AUTHORITY: lambda: True,
        Method.SEEDED: lambda: True,
        Method.LABEL: lambda: True,
        Method.TOFU: lambda: True,
        Method.PINNED: lambda: isinstance(source.config, PinsKeys),
        Method.CONSOLE: lambda: isinstance(source, ConsoleReader),
    }
    for method in source.config.trust:
        if not available.get(method, lambda: False)():
            yield Finding(name, "note", f"{method} has no evidence for this source; remove it from `trust`")
    if Method.TOFU in source.config.trust:
        yield Finding(name, "note", "tofu trusts the first host key that it sees, whichever machine presents it")
    if isinstance(source.config, PinsKeys) and source.config.trust == [Method.PINNED]:
        bare = [agent.name for agent in snapshot.agents if agent.id not in source.config.pinned_keys()]
        if bare:
            yield Finding(
                name,
                "failed",
                f"no host_key for {', '.join(sorted(bare))}, so no tunnel; add host_key to each [[source.agent]]",
            )
    if Method.CONSOLE in source.config.trust and isinstance(source, PermissionChecker) and snapshot.agents:
        lacking = source.console_permission(min(snapshot.agents, key=lambda agent: agent.id))
        yield Finding(name, "failed" if lacking else "ok", lacking or "consoles can be read")
