"""Agents that do not read what they request: their unsent data is bounded, and their tunnels end."""

import asyncio

import pytest

from tests.abuse.hostile_setup import MIB, PROBE_INTERVAL, hostile_setup, print_figure

TIMEOUT = min(10.0, max(1.0, PROBE_INTERVAL))
"""Seconds that a probe may take at this interval."""


@pytest.mark.parametrize(
    ("protocol", "drip"), [("registry", 0), ("tcp", 0), ("registry", 1.0)], ids=["gate", "relay", "gate, drip"]
)
async def test_a_pull_that_is_not_read_fills_no_memory_and_ends_the_tunnel(protocol: str, drip: float) -> None:
    """A pull that the agent does not read takes a few MiB of the controller's memory, and the tunnel's probe times out.

    The agent requests 400 MiB with a window of 4 GiB and reads nothing. IGNORE messages do not count as a sign of life.
    """
    async with hostile_setup() as setup:
        bad = await setup.agent("bad", protocol=protocol, probe_interval=PROBE_INTERVAL)
        controller = await setup.controller(bad)
        controller.forget_peak()
        before, clock = controller.resident, asyncio.get_running_loop().time
        started = clock()

        bad.child.send(do="pull_unread", port=bad.listen, drip=drip)
        ended = await controller.ended(bad, 60)

        took, grown = clock() - started, controller.peak - before
        print_figure(
            f"pull unread through {protocol}, drip {drip} s: RSS {grown / MIB:+.1f} MiB at most; "
            f"{ended['code']} after {took:.1f} s at an interval of {PROBE_INTERVAL:g} s"
        )
        assert grown <= 32 * MIB
        assert ended["code"] == "probe-timeout"
        assert took <= min(60, 2 * PROBE_INTERVAL + TIMEOUT)
        held = await controller.holds()
        assert held["channels"] == 0
