"""The raw relay, for forwards of protocol `tcp`: it copies bytes both ways, and half-closes, and applies no policy."""

import asyncio
import sys
import time

import structlog

from tunnelmgr.core.ports import AgentChannel, Channel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.target_socket import TargetSocket
from tunnelmgr.gate.traffic import MeteredChannel, Traffic

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def relay(channel: AgentChannel, target: Endpoint, traffic: Traffic) -> None:
    """Relay one channel to `target` until both directions have ended or either side is lost.

    There is no deadline: a raw stream may be idle for any time, and ends with its tunnel.
    """
    agent = MeteredChannel(channel, traffic)
    try:
        await _relay_both_ways(agent, target)
    except RegistryUnavailableError as failed:
        if traffic.may_warn(time.monotonic()):
            log.warning("relay target unreachable", target=str(target), error=failed.code, reason=str(failed))
        agent.abort()
    except BaseException:
        agent.abort()
        raise
    finally:
        agent.uncount()


async def _relay_both_ways(agent: Channel, target: Endpoint) -> None:
    socket = await TargetSocket.open(target)
    complete = False
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.scheduled(_to_target(agent, socket)), name="relay to target")
            tasks.create_task(agent.scheduled(_to_agent(agent, socket)), name="relay to agent")
        complete = True
    except* ConnectionError:
        # One side was reset, so the other is reset too, as on a direct connection.
        agent.abort()
    finally:
        if complete:
            agent.close()
            socket.close()
        else:
            socket.abort()


async def _to_target(agent: Channel, socket: TargetSocket) -> None:
    while data := await agent.read():
        await socket.write(data)
        await agent.checkpoint()
    socket.write_eof()


async def _to_agent(agent: Channel, socket: TargetSocket) -> None:
    await agent.send_from(socket, sys.maxsize, lambda _: None)
    agent.write_eof()
