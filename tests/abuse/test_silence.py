"""Agents that take and do not read: what waits for them is bounded, and signs of life do not save them."""

import asyncio

import pytest

from tests.abuse.lab import MIB, PROBE_INTERVAL, staged, tell

TIMEOUT = min(10.0, max(1.0, PROBE_INTERVAL))
"""Seconds that a probe may take at this interval."""


@pytest.mark.parametrize(
    ("protocol", "drip"), [("registry", 0), ("tcp", 0), ("registry", 1.0)], ids=["gate", "relay", "gate, drip"]
)
async def test_a_pull_that_is_not_read_fills_no_memory_and_ends_the_tunnel(protocol: str, drip: float) -> None:
    """400 MiB, a window of 4 GiB and a closed socket: a few MiB wait here, and the probe finds the agent dead.

    Messages that say nothing, one a second, make it no more alive.
    """
    async with staged() as stage:
        bad = await stage.agent("bad", protocol=protocol, probe_interval=PROBE_INTERVAL)
        controller = await stage.controller(bad)
        controller.forget_peak()
        before, clock = controller.resident, asyncio.get_running_loop().time
        begun = clock()

        bad.child.tell(do="pull_unread", port=bad.listen, drip=drip)
        ended = await controller.ended(bad, 60)

        took, grown = clock() - begun, controller.peak - before
        tell(
            f"pull unread through {protocol}, drip {drip} s: RSS {grown / MIB:+.1f} MiB at most; "
            f"{ended['code']} after {took:.1f} s at an interval of {PROBE_INTERVAL:g} s"
        )
        assert grown <= 32 * MIB
        assert ended["code"] == "probe-timeout"
        assert took <= min(60, 2 * PROBE_INTERVAL + TIMEOUT)
        held = await controller.holds()
        assert held["channels"] == 0
