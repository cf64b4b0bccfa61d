"""Identical requests of many agents, sent to the registry once.

When a fleet starts, its agents ask for the same manifest at the same time, byte for byte. A request joins those that
wait with it; it never gets a response to a request that was sent before it arrived. So a client that has seen a push
succeed sees its result: the responses are as fresh as if each request had been sent.
"""

import asyncio
from dataclasses import dataclass, field

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.registry_pool import Answer, Outcome, RegistryPool

_Key = tuple[Endpoint, bytes]


@dataclass(slots=True)
class _Round:
    """Those that wait for the request in progress, and those that came after it was sent."""

    asked: list[Outcome]
    late: list[Outcome] = field(default_factory=list)


class SharedRequests:
    """The shared requests of all channels, and the pools of connections that carry them."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._pools: dict[Endpoint, RegistryPool] = {}
        self._rounds: dict[_Key, _Round] = {}
        self._users = 0

    def enter(self) -> None:
        """Count one more channel."""
        self._users += 1

    def leave(self) -> None:
        """Count one channel less; without channels, no connection is kept."""
        self._users -= 1
        if not self._users:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()

    async def answer(self, target: Endpoint, method: str, wire: bytes) -> Answer | None:
        """Return the registry's response to a GET or HEAD, None if it does not fit in memory.

        Raises RegistryUnavailableError.
        """
        outcome: Outcome = asyncio.get_running_loop().create_future()
        key = (target, wire)
        if (current := self._rounds.get(key)) is not None:
            current.late.append(outcome)
        else:
            self._rounds[key] = _Round([outcome])
            self._send(key, method)
        return await outcome

    def _send(self, key: _Key, method: str) -> None:
        target, wire = key
        pool = self._pools.get(target)
        if pool is None:
            pool = self._pools[target] = RegistryPool(target, self._timeout)
        pool.request(method, wire).add_done_callback(lambda sent: self._settle(key, method, sent))

    def _settle(self, key: _Key, method: str, sent: Outcome) -> None:
        current = self._rounds[key]
        for outcome in current.asked:
            if not outcome.done():
                _copy(sent, outcome)
        current.asked = [outcome for outcome in current.late if not outcome.done()]
        current.late = []
        if current.asked:
            self._send(key, method)
        else:
            del self._rounds[key]


def _copy(sent: Outcome, outcome: Outcome) -> None:
    """Settle one future as another; each gets an exception of its own, since raising one changes its traceback."""
    if (failed := sent.exception()) is not None:
        outcome.set_exception(RegistryUnavailableError(str(failed)))
    else:
        outcome.set_result(sent.result())
