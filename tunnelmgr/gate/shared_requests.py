"""Identical requests of many agents, sent to the registry once.

When a fleet starts, its agents ask for the same manifest at the same time, byte for byte. A request joins those that
wait with it; it never gets a response to a request that was sent before it arrived. So a client that has seen a push
succeed sees its result: the responses are as fresh as if each request had been sent.

A request in the registry holds a slot of one agent that waits for it. Those that join hold none, since they cost the
registry nothing.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.registry_pool import Answer, Outcome, RegistryPool
from tunnelmgr.gate.registry_slot import RegistrySlot

_Key = tuple[Endpoint, bytes]
_AGAIN: Final = "again"


@dataclass(slots=True)
class _Waiter:
    """One that waits, its agent's slots, and its answer: `_AGAIN` if it has to ask for itself."""

    slots: Slots
    answered: "asyncio.Future[Answer | str | None]"

    def settle(self, outcome: Outcome) -> None:
        """Pass an outcome on; each gets an exception of its own, since raising one changes its traceback."""
        if isinstance(outcome, RegistryUnavailableError):
            self.answered.set_exception(RegistryUnavailableError(str(outcome)))
        else:
            self.answered.set_result(outcome)


@dataclass(slots=True)
class _Round:
    """A request in progress: whose slot it holds, who waits for it, and who came after it was sent."""

    slots: Slots
    asked: list[_Waiter]
    late: list[_Waiter] = field(default_factory=list)


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

    async def answer(self, method: str, wire: bytes, slot: RegistrySlot) -> Answer | None:
        """Return the registry's response to a GET or HEAD, None if it does not fit in memory.

        Raises RegistryUnavailableError.
        """
        key, loop = (slot.target, wire), asyncio.get_running_loop()
        while True:
            waiter = _Waiter(slot.slots, loop.create_future())
            if (current := self._rounds.get(key)) is not None:
                current.late.append(waiter)
            elif await self._take_first(key, slot):
                self._send(key, method, _Round(slot.slots, [waiter]))
            else:
                continue
            answered = await waiter.answered
            if not isinstance(answered, str):
                return answered

    async def _take_first(self, key: _Key, slot: RegistrySlot) -> bool:
        """Take a slot; returns False, without one, if the same request has been sent meanwhile."""
        await slot.acquire()
        if key not in self._rounds:
            return True
        slot.slots.release()
        return False

    def _send(self, key: _Key, method: str, current: _Round) -> None:
        self._rounds[key] = current
        target, wire = key
        pool = self._pools.get(target)
        if pool is None:
            pool = self._pools[target] = RegistryPool(target, self._timeout)
        pool.request(method, wire, lambda outcome: self._settle(key, method, outcome))

    def _settle(self, key: _Key, method: str, outcome: Outcome) -> None:
        """Pass an answer on, and send the request again for those that came late, if one of them has a slot."""
        current = self._rounds.pop(key)
        current.slots.release()
        for waiter in current.asked:
            if not waiter.answered.done():
                waiter.settle(outcome)
        late = [waiter for waiter in current.late if not waiter.answered.done()]
        first = next((waiter for waiter in late if waiter.slots.take()), None)
        if first is not None:
            self._send(key, method, _Round(first.slots, late))
            return
        for waiter in late:
            waiter.answered.set_result(_AGAIN)
