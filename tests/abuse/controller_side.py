"""The controller side in a process of its own, so that its memory and CPU time can be measured.

It reads one line of JSON with its agents, runs a worker for each with the real gate and relay, and prints every event
as a line of JSON. At each further line of input it prints what it holds.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import asyncssh

from lab.gate_stand_ins import OnePolicy
from tunnelmgr.cli.log_format import LogFormat, LogLevel, configure
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelBound, TunnelEnded, TunnelProbed
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.dataplane import fair_queue
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.gate.uploads import UploadProofs
from tunnelmgr.ssh.login import Login
from tunnelmgr.tunnel.admission import Admission
from tunnelmgr.tunnel.proof import Prover
from tunnelmgr.tunnel.settings import TunnelSettings
from tunnelmgr.tunnel.supervisor import Supervisor

Order = dict[str, Any]


class ControllerSide:
    """The parts that the daemon would assemble, without discovery and store."""

    def __init__(self, order: Order, tasks: asyncio.TaskGroup) -> None:
        self.prover = Prover()
        policy = GroupPolicy.build("ci")
        self.gate = Gate(GateContext(policies=OnePolicy(policy), proofs=self.prover, uploads=UploadProofs(b"secret")))
        key = asyncssh.import_private_key(order["key"])
        self.settings = TunnelSettings(
            login=Login("tunnel", key, order["connect_timeout"]),
            probe_interval=1.0,
            max_channels=order["max_channels"],
            drain=1.0,
            admission=Admission(),
            prover=self.prover,
            channel_handler=self,
            events=self,
        )
        for agent in order["agents"]:
            settings = replace(self.settings, probe_interval=agent["probe_interval"])
            Supervisor(tasks, settings).open(OpenTunnel(AgentId(agent["id"]), 1, spec(agent, order), FIRST))

    def report(self, event: Event) -> None:
        """Print an event."""
        report(event)

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Serve a channel as the daemon does."""
        if forward.protocol == "tcp":
            await relay(channel, forward.target, Traffic())
            return
        caller = Caller(spec.agent, spec.incarnation, spec.name, spec.group, "test", str(endpoint), forward.name)
        await self.gate.serve(channel, caller, forward, Traffic())


def spec(agent: Order, order: Order) -> TunnelSpec:
    """Return the specification of an agent's tunnel."""
    listen = (Endpoint("127.0.0.1", agent["listen"]),)
    return TunnelSpec(
        agent=AgentId(agent["id"]),
        incarnation="1",
        name=agent["id"],
        group="ci",
        addresses=("127.0.0.1",),
        port=agent["port"],
        forwards=(Forward("registry", listen, Endpoint("127.0.0.1", order["target"]), agent["protocol"]),),
        trust=HostTrust(Method.PINNED, (agent["host_key"],)),
    )


def report(event: Event) -> None:
    """Print an event."""
    match event:
        case TunnelBound():
            print_line({"event": "bound", "agent": event.agent})
        case TunnelProbed():
            print_line({"event": "probed", "agent": event.agent, "took": event.took, "at": time.monotonic()})
        case TunnelEnded(failure=failure):
            failed = {"code": failure.code, "message": failure.message} if failure else {"code": "", "message": ""}
            print_line({"event": "ended", "agent": event.agent, "at": time.monotonic()} | failed)
        case _:
            pass


def holds() -> Order:
    """Return what this process holds in memory, and its CPU time."""
    gc.collect()
    kept = [each for each in gc.get_objects() if isinstance(each, asyncssh.SSHTCPChannel)]
    return {
        "channels": len(kept),
        "tasks": len(asyncio.all_tasks()),
        "cpu": time.process_time(),
    }


def print_line(answer: Order) -> None:
    """Print one line of JSON."""
    print(json.dumps(answer), flush=True)  # noqa: T201 - read by the test


async def main() -> None:
    """Run until standard input ends."""
    configure(LogFormat.JSON, LogLevel.ERROR)
    with suppress(PermissionError):
        os.nice(-10)  # other programs must not influence the measurement
    loop = asyncio.get_running_loop()
    read: Callable[[], str] = sys.stdin.readline
    order = json.loads(await loop.run_in_executor(None, read))
    if not order["no_op_budget"]:
        fair_queue.NO_OP_SHARE = 1e6
    async with asyncio.TaskGroup() as tasks:
        ControllerSide(order, tasks)
        while await loop.run_in_executor(None, read):
            print_line({"event": "holds"} | holds())
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
