"""`tunnelmgr doctor`: goes the way of one agent's tunnel step by step, and says where it ends, why, and what to do.

It asks the daemon what it knows, and tries itself what the daemon does: it connects, reads the host key, and logs in
with the configured key. A tunnel that is up is not disturbed.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from tunnelmgr.config import Config
from tunnelmgr.control.client import ControlClient
from tunnelmgr.control.problems import controller_problems
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cures import CURES
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, Phase, TunnelSpec
from tunnelmgr.daemon.checks import check
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.socket_options import missing_kernel_settings
from tunnelmgr.errors import (
    ConnectionLostError,
    ControlError,
    ExposedListenerError,
    ListenRefusedError,
    TunnelmgrError,
    UnreachableError,
)
from tunnelmgr.gate.registry_check import registry_error
from tunnelmgr.ssh.client import ChannelRefused, SshConnection, dial
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.login import Login, load_login
from tunnelmgr.threads import in_thread

Result = Literal["ok", "failed", "note"]
Json = dict[str, Any]
ANSWER_TIMEOUT = 10.0
"""Seconds for an answer through the tunnel."""
KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
"""The types of host keys that an agent may have beside the one that it prefers."""
STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way: what was found, what to do about it, and how long it took, in seconds."""

    step: str
    result: Result
    message: str
    cure: str = ""
    took: float = 0.0


@dataclass(slots=True)
class Timer:
    """Makes steps with the time since the last one."""

    clock: Callable[[], float] = time.monotonic
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._since = self.clock()

    def step(self, step: str, result: Result, message: str, cure: str = "") -> Step:
        """Return a step that ends now."""
        now = self.clock()
        took, self._since = now - self._since, now
        return Step(step, result, message, cure, took)

    def failed(self, step: str, error: TunnelmgrError) -> Step:
        """Return a step that ends now with an error."""
        return self.step(step, "failed", str(error), CURES.get(error.code, ""))


async def examine_all(config: Config, client: ControlClient) -> AsyncIterator[Step]:
    """Yield what is wrong with the daemon, and the results of the checks that every tunnel depends on."""
    timer = Timer()
    try:
        status = await in_thread(client.status)
    except ControlError as failed:
        yield timer.step("controller", "failed", str(failed))
    else:
        problems = controller_problems(status)
        up = f"{status['up']} of {status['agents']} agents are up"
        yield timer.step("controller", "ok", f"{status['controller']} answers, tunnelmgr {status['version']}, {up}")
        for problem in problems:
            yield timer.step("controller", "failed", problem)
    for finding in await check(config):
        yield timer.step(finding.check, finding.result, finding.message)


async def examine(config: Config, client: ControlClient, wanted: str) -> AsyncIterator[Step]:
    """Yield the steps as they are taken. After one that the others depend on has failed, the others are not taken."""
    timer = Timer()
    try:
        status = await in_thread(client.status)
        yield timer.step("controller", "ok", f"{status['controller']} answers, tunnelmgr {status['version']}")
        agent = await in_thread(client.agent, wanted)
    except ControlError as failed:
        yield timer.step("controller", "failed", str(failed))
        return
    for step in (_source(timer, status, agent), _evidence(timer, agent)):
        yield step
    async for step in _path(timer, config, agent):
        yield step
    for forward in config.forwards():
        if forward.protocol == "registry":
            error, name = await registry_error(forward.target), f"registry {forward.target}"
            yield timer.step(name, "failed" if error else "ok", error or "it answers")
    for lack in missing_kernel_settings():
        yield timer.step("kernel", "note", lack)


def _source(timer: Timer, status: Json, agent: Json) -> Step:
    """Say whether the agent's source lists it."""
    name = agent["source"]
    source = next((one for one in status["sources"] if one["name"] == name), None)
    if not agent["present"]:
        left = agent["history"][-1]["detail"] if agent.get("history") else ""
        return timer.step("source", "failed", f"{agent['agent']} has left: {left or 'its source no longer lists it'}")
    if source is None:
        return timer.step("source", "failed", f"source {name} is not configured; add it, then: tunnelmgr reload")
    if not source["ok"]:
        last = f"; its last complete answer was at {source['last_success']}" if source["last_success"] else ""
        reason = source["error"] or "no answer yet"
        return timer.step("source", "note", f"{name} lists it, but fails now: {reason}{last}")
    facts = f"as {agent['name']} at {agent['address']}, group {agent['group']}"
    return timer.step("source", "ok", f"{name} lists it {facts}")


def _evidence(timer: Timer, agent: Json) -> Step:
    """Say by what the agent's host key is known."""
    if agent["phase"] == Phase.QUARANTINED.value:
        release = f'To release it: tunnelmgr release {agent["agent"]} --reason "…"'
        cure = f"{CURES.get(agent['error'], '')} {release}".strip()
        return timer.step("evidence", "failed", f"quarantined: {agent['message']}", cure)
    if agent["trust"] is None:
        why = agent["message"] or "the trust methods of its source have not answered yet"
        return timer.step("evidence", "failed", f"no evidence of its host key: {why}", CURES["host-key-unknown"])
    detail = f" ({agent['evidence']})" if agent["evidence"] else ""
    return timer.step("evidence", "ok", f"{agent['trust']}{detail}: {', '.join(agent['fingerprints'])}")


async def _path(timer: Timer, config: Config, agent: Json) -> AsyncIterator[Step]:
    """Connect to the agent, compare its host key, log in, and try the listeners."""
    if agent["address"] is None:
        yield timer.step("connect", "failed", "the agent has no address yet; its source says when it has")
        return
    ssh = config.ssh
    target = Agent(
        AgentId(agent["agent"]), "", agent["source"], agent["group"], agent["name"], (agent["address"],), agent["port"]
    )
    expected = agent["fingerprints"]
    try:
        presented = await _host_key(target, config, expected)
    except UnreachableError as failed:
        yield timer.failed("connect", failed)
        return
    yield timer.step("connect", "ok", f"sshd answers at {agent['address']} port {agent['port']}")
    shown = fingerprint(presented)
    if shown not in expected:
        result: Result = "failed" if expected else "note"
        lacks = "without evidence, the login is not tried"
        other = f"the evidence is {', '.join(expected)}: another machine has this address, or it was rebuilt"
        remedy = CURES["host-key-mismatch"] if expected else ""
        yield timer.step("host key", result, f"it shows {shown}; {other if expected else lacks}", remedy)
        return
    yield timer.step("host key", "ok", shown)
    login = await in_thread(load_login, ssh)
    async for step in _session(timer, config, login, agent, _spec(target, config, presented)):
        yield step


async def _host_key(agent: Agent, config: Config, expected: list[str]) -> str:
    """Return the host key that matches the evidence, of whichever type, otherwise the preferred one.

    Raises UnreachableError.
    """
    ssh = config.ssh
    preferred = await scan_host_key(agent, ssh.connect_timeout, ssh.ciphers)
    if not expected or fingerprint(preferred) in expected:
        return preferred
    for kind in KEY_TYPES:
        with suppress(UnreachableError):  # it has no key of this type
            other = await scan_host_key(agent, ssh.connect_timeout, ssh.ciphers, wanted=(f"{kind} -",))
            if fingerprint(other) in expected:
                return other
    return preferred


def _spec(agent: Agent, config: Config, presented: str) -> TunnelSpec:
    trust = HostTrust(Method.PINNED, (presented,))
    return TunnelSpec(agent.id, "", agent.name, agent.group, agent.addresses, agent.port, config.forwards(), trust)


async def _session(timer: Timer, config: Config, login: Login, agent: Json, spec: TunnelSpec) -> AsyncIterator[Step]:
    """Log in as the daemon does, and try what a tunnel needs."""
    try:
        connection = await dial(spec, login)
    except TunnelmgrError as failed:
        yield timer.failed("login", failed)
        return
    try:
        yield timer.step("login", "ok", f"user {login.user}, key {connection.login_key}")
        yield _network_path(timer, connection)
        yield await _nagle(timer, connection)
        held = {listen for forward in agent["forwards"] for listen in forward["held"]}
        for forward in config.forwards():
            for endpoint in forward.listen:
                yield await _listener(timer, connection, spec.agent, endpoint, held=str(endpoint) in held)
        for forward in config.forwards():
            if str(forward.listen[0]) in held:
                async for step in _through(timer, connection, forward):
                    yield step
        excess = await connection.excess()
        if excess:
            more = f"it could also {', '.join(excess)}"
            yield timer.step("rights of the key", "note", more, CURES["key-too-powerful"])
        else:
            yield timer.step("rights of the key", "ok", "what a tunnel needs, and no more")
    except TunnelmgrError as lost:
        yield timer.failed("connection", lost)
    finally:
        connection.abort()


def _network_path(timer: Timer, connection: SshConnection) -> Step:
    """Say how long the path is, and how the kernel sends on it; `missing_kernel_settings` says what it lacks."""
    path = connection.path
    sends = f"congestion control {path.congestion_control}, send buffer {path.send_buffer // 1024} KiB"
    return timer.step("network path", "ok", f"round trip {1000 * path.round_trip:.1f} ms, {sends}")


async def _nagle(timer: Timer, connection: SshConnection) -> Step:
    """Say whether the agent's sshd sends small packets at once."""
    if await connection.disable_nagle():
        return timer.step("Nagle's algorithm", "ok", "off in the agent's sshd: it sends small packets at once")
    effect = "on in the agent's sshd, which permits no session; the controller acknowledges each packet at once instead"
    cure = "Remove `MaxSessions 0` from the agent's sshd_config and reload its sshd."
    return timer.step("Nagle's algorithm", "note", effect, cure)


def _window(timer: Timer, connection: SshConnection, stream: ForwardedChannel) -> Step:
    """Say how fast one pull can be: the agent's sshd takes a window ahead of its client, and grants it again later."""
    window, round_trip = stream.initial_send_window, connection.path.round_trip
    most = f"; at this round trip, one pull has at most {window / round_trip / 2**20:.0f} MiB/s" if round_trip else ""
    return timer.step("window", "ok", f"the agent's sshd takes {window // 1024} KiB ahead of its client{most}")


async def _listener(timer: Timer, connection: SshConnection, agent: AgentId, endpoint: Endpoint, *, held: bool) -> Step:
    """Say who listens on an address; one that nobody holds is requested, and given back."""
    name = f"listen on {endpoint}"
    if held:
        return timer.step(name, "ok", "the tunnel holds it")
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            listener = await connection.listen(endpoint, Declining())
            if listener is not None:
                listener.close()
                await listener.closed()
    except TimeoutError:
        return timer.step(name, "failed", f"the agent's sshd does not answer within {ANSWER_TIMEOUT:g} s")
    if listener is None:
        return timer.failed(name, ListenRefusedError(str(endpoint), connection.listen_refusal))
    if connection.exposed:
        return timer.failed(name, ExposedListenerError(str(endpoint), agent))
    return timer.step(name, "ok", "the agent's sshd permits it")


class Declining:
    """The owner of a listener that serves no channel."""

    def admit_channel(self) -> None:
        """Decline: the listener is there for a moment only; any other exception would end the connection."""
        raise ChannelRefused("the listener is a test")

    def channel_opened(self, channel: object) -> None:
        """Do nothing: none is admitted."""

    def channel_closed(self) -> None:
        """Do nothing: none is admitted."""


async def _through(timer: Timer, connection: SshConnection, forward: Forward) -> AsyncIterator[Step]:
    """Ask through a listener that the tunnel holds, as a client on the agent does."""
    endpoint, name = forward.listen[0], f"request through {forward.name}"
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            stream = await connection.connect(endpoint)
            try:
                answer = await _answer(stream, endpoint) if forward.protocol == "registry" else None
            finally:
                stream.abort()
    except ConnectionRefusedError as refused:
        advice = f'Add permitopen="{endpoint}" to the key\'s line in authorized_keys.'
        yield timer.step(name, "failed", f"the agent's sshd does not connect to {endpoint}: {refused}", advice)
        return
    except TimeoutError:
        yield timer.step(name, "failed", f"no answer within {ANSWER_TIMEOUT:g} s")
        return
    except (ConnectionError, ConnectionLostError) as ended:
        yield timer.step(name, "failed", f"{endpoint} closed the connection: {ended}")
        return
    yield _answered(timer, name, endpoint, answer)
    if stream.initial_send_window:
        yield _window(timer, connection, stream)


async def _answer(stream: ForwardedChannel, endpoint: Endpoint) -> bytes:
    await stream.write(f"GET /v2/ HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n".encode())
    return await stream.read()


def _answered(timer: Timer, name: str, endpoint: Endpoint, answer: bytes | None) -> Step:
    """Say what the answer to GET /v2/ means; None if a raw stream was not asked anything."""
    if answer is None:
        return timer.step(name, "ok", f"{endpoint} accepts connections")
    status = STATUS_LINE.match(answer)
    if status is None:
        message = f"{endpoint} does not speak HTTP: another process listens there"
        return timer.step(name, "failed", message, CURES["listener-not-ours"])
    ok = status[1] == b"200"
    return timer.step(name, "ok" if ok else "failed", f"the gate answers {status[1].decode()} to GET /v2/")
