"""Steps of the fair queue that use CPU time of a clock of ours."""

import asyncio
from collections.abc import Callable

from tunnelmgr.dataplane.fair_queue import QUANTUM, SLICE, FairQueue, Share


class CpuTime:
    """The thread's CPU time, which only the tests' steps use, and the time of day."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = 0.0

    def __call__(self) -> float:
        """Return the CPU seconds used so far."""
        return self.now


def backlogged(queue: FairQueue) -> Share:
    """Return the share of an agent that has used up its credit."""
    share = Share(queue)
    share.credit = -QUANTUM
    return share


class Steps:
    """Steps that use CPU time, and the order and the iteration of the loop in which each ran."""

    def __init__(self, cpu: CpuTime) -> None:
        self._cpu = cpu
        self.ran: list[str] = []
        self.iterations: list[int] = []
        self.iteration = 0

    def of(self, name: str, seconds: float = SLICE) -> Callable[[], None]:
        """Return a step that uses this much CPU time."""

        def step() -> None:
            self._cpu.now += seconds
            self.ran.append(name)
            self.iterations.append(self.iteration)

        return step

    async def until_run(self, count: int) -> None:
        """Count iterations of the loop until this many steps have run."""
        for _ in range(10 * count + 100):
            if len(self.ran) >= count:
                return
            self.iteration += 1
            await asyncio.sleep(0)
        raise AssertionError(f"{len(self.ran)} of {count} steps have run")
