"""The gate: serves the channels of forwards with protocol `registry`, each in a session of its own."""

from dataclasses import dataclass

import structlog

from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.tunnel import Forward
from tunnelmgr.errors import GateError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.session import Session
from tunnelmgr.gate.traffic import MeteredChannel, Traffic

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Gate:
    """Applies the policy of an agent's group to every request on its channels."""

    context: GateContext

    async def serve(self, channel: AgentChannel, caller: Caller, forward: Forward, traffic: Traffic) -> None:
        """Serve one channel of a forward until it ends; raises nothing but CancelledError."""
        agent = MeteredChannel(channel, traffic)
        session = Session(self.context, agent, caller, forward)
        self.context.shared.enter()
        try:
            await session.run()
        except ConnectionError:
            log.debug("channel ended by agent", agent=caller.agent)
        except Exception:
            log.exception("gate session failed", agent=caller.agent, error=GateError.code)
        except BaseException:
            channel.abort()
            raise
        finally:
            session.close()
            self.context.shared.leave()
            channel.close()
            agent.uncount()
