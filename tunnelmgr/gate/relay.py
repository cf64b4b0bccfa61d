"""The raw relay, for forwards of protocol `tcp`: bytes both ways, half-closes kept, nothing looked at."""

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
    """Carry one channel to `target` until both directions have ended or either side is lost.

    Waits without a deadline: a raw stream may be idle as long as it likes, and ends with its tunnel.
    """
    agent = MeteredChannel(channel, traffic)
    try:
        await _carry(agent, target)
    except RegistryUnavailableError as away:
        if traffic.may_warn(time.monotonic()):
            log.warning("relay target away", target=str(target), error=away.code, reason=str(away))
        agent.abort()
    except BaseException:
        agent.abort()
        raise
    finally:
        agent.uncount()


async def _carry(agent: Channel, target: Endpoint) -> None:
    upstream = await TargetSocket.open(target)
    whole = False
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.scheduled(_to_target(agent, upstream)), name="relay to target")
            tasks.create_task(agent.scheduled(_to_agent(agent, upstream)), name="relay to agent")
        whole = True
    except* ConnectionError:
        # One side was reset: so is the other, as it would be without us.
        agent.abort()
    finally:
        if whole:
            agent.close()
            upstream.close()
        else:
            upstream.abort()


async def _to_target(agent: Channel, upstream: TargetSocket) -> None:
    while data := await agent.read():
        await upstream.write(data)
        await agent.checkpoint()
    upstream.write_eof()


async def _to_agent(agent: Channel, upstream: TargetSocket) -> None:
    await agent.send_from(upstream, sys.maxsize, lambda _: None)
    agent.write_eof()
