"""Agents that send too much: what they get is bounded, and other agents' tunnels do not suffer."""

import asyncio
import statistics
from collections.abc import Awaitable

import pytest

from tests.abuse.hostile_setup import (
    HOSTILE,
    MIB,
    OPENS,
    REQUESTS,
    Agent,
    Controller,
    Facts,
    hostile_setup,
    print_figure,
)
from tests.until import until
from tunnelmgr.dataplane.fair_queue import NO_OP_SHARE

GROWTH = 32 * MIB
"""Bytes by which the controller's memory may grow during a flood."""
FLOODS: list[tuple[str, Facts, float]] = [
    ("requests", {"count": REQUESTS}, 3 * NO_OP_SHARE),
    ("debugs", {"count": 10_000, "size": 20}, 3 * NO_OP_SHARE),
    ("opens", {"count": 5_000, "type": "session"}, 3 * NO_OP_SHARE),
    ("rekeys", {"count": 400}, 7 * NO_OP_SHARE),
]
"""Attacks, how much each of them sends, and the share of CPU time that it may get.

Reading and decrypting come on top of the no-op budget. Without the budget, the first three get half of the CPU time or
more. A key exchange is one long step, and both ends compute in turn: a flood of them gets half of the time at most.
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("attack", "how", "share"), FLOODS, ids=[attack for attack, _, _ in FLOODS])
async def test_a_flood_gets_a_small_share_of_the_controllers_cpu_time(attack: str, how: Facts, share: float) -> None:
    """A flood of any kind of message gets a bounded share of the CPU time, and ends no other tunnel.

    `benchmarks/flood.py` measures what this means for another agent's requests.
    """
    async with hostile_setup() as setup:
        good = await setup.agent("good", probe_interval=0.02)
        bad = await setup.agent("bad", probe_interval=10.0)
        controller = await setup.controller(good, bad)
        calm = await cpu_share(controller, controller.probed(good, more=100, deadline=30))
        before, probes = controller.resident, len(controller.events("probed", good))

        flooded = await cpu_share(controller, bad.do(attack, deadline=300, **how))

        grown, ended = controller.resident - before, controller.events("ended", bad)
        print_figure(
            f"{attack}: CPU share {calm:.3f} before, {flooded:.3f} during; RSS {grown / MIB:+.1f} MiB; {_end(ended)}"
        )
        assert len(controller.events("probed", good)) > probes
        assert not controller.events("ended", good)
        assert not ended or ended[0]["code"] == "abusive"
        assert grown <= GROWTH
        assert flooded <= calm + share


async def cpu_share(controller: Controller, work: Awaitable[object]) -> float:
    """Return the controller's CPU time while something is done, as a share of the elapsed time."""
    clock = asyncio.get_running_loop().time
    began, used = clock(), controller.cpu
    await work
    return (controller.cpu - used) / (clock() - began)


@pytest.mark.timeout(600)
async def test_agents_that_flood_together_end_no_tunnel_of_another() -> None:
    """While several agents flood with IGNORE messages, the probes of another agent succeed and its tunnel stays up.

    A flooding agent's own probe is late. It ends as `abusive`, unless so many flood that none of them gets more than
    the no-op share of the CPU time; then as `probe-timeout`.
    """
    async with hostile_setup() as setup:
        good = await setup.agent("good", probe_interval=0.05)
        bad = [await setup.agent(f"bad-{number}", probe_interval=10.0) for number in range(HOSTILE)]
        controller = await setup.controller(good, *bad)
        calm = await controller.probed(good, more=50, deadline=30)

        for one in bad:
            one.child.send(do="ignores", count=100 * REQUESTS)
        flooded = await controller.probed(good, more=100, deadline=60)

        assert not controller.events("ended", good)
        assert {event["code"] for one in bad for event in controller.events("ended", one)} <= {
            "abusive",
            "probe-timeout",
        }
        print_figure(
            f"{HOSTILE} agents flood: another's probe takes {statistics.median(calm) * 1000:.1f} ms before, "
            f"{statistics.median(flooded) * 1000:.1f} ms during (medians)"
        )


def _end(ended: list[Facts]) -> str:
    return f"ended: {ended[0]['code']}" if ended else "still up"


async def test_five_thousand_opens_get_no_more_than_max_channels() -> None:
    """Of 5,000 opens, at most `max_channels` are accepted, no channel is left afterwards, and other tunnels stay up."""
    async with hostile_setup() as setup:
        good, bad = await setup.agent("good"), await setup.agent("bad", probe_interval=1.0)
        controller = await setup.controller(good, bad, max_channels=16)

        did = await bad.do("opens", type="forwarded-tcpip", count=5000)

        held = await controller.holds()
        print_figure(f"5,000 opens: {did}; {held['channels']} channels held; {_end(controller.events('ended', bad))}")
        assert 1 <= did["accepted"] <= 18
        # Plus both ends of a probe, for each tunnel that has one in progress.
        assert held["channels"] <= 18 + 4
        assert not controller.events("ended", good)
        assert {event["code"] for event in controller.events("ended", bad)} <= {"abusive"}
        await _end_and_expect_no_channels(bad, controller)
        await controller.probed(good, more=3)


async def _end_and_expect_no_channels(bad: Agent, controller: Controller) -> None:
    """End the bad agent, and expect that only the channels of the other tunnel are left."""
    bad.child.process.kill()
    await controller.ended(bad)
    for _ in range(50):
        held = await controller.holds()
        if held["channels"] <= 2:
            return
    raise AssertionError(held)


async def test_rejected_opens_leave_no_channel_behind() -> None:
    """Rejected opens, all processed since the budget is lifted, leave neither channels nor memory behind."""
    async with hostile_setup() as setup:
        # One probe and no more: an agent that opens without end takes the probe's own place, and so loses its tunnel.
        bad = await setup.agent("bad", probe_interval=3600.0)
        controller = await setup.controller(bad, max_channels=1, no_op_budget=False)
        await bad.do("opens", type="forwarded-tcpip", count=2000, unanswered=512)
        before, started = controller.resident, await controller.holds()

        did = await bad.do("opens", deadline=1800, type="forwarded-tcpip", count=OPENS, unanswered=512)

        grown, held = controller.resident - before, await controller.holds()
        print_figure(
            f"{did['sent']} rejected opens in {held['cpu'] - started['cpu']:.1f} s of CPU: "
            f"{held['channels']} channels left, RSS {grown / MIB:+.1f} MiB"
        )
        assert did["sent"] == OPENS
        assert did["accepted"] <= 3
        assert held["channels"] <= 4
        assert grown <= 8 * MIB
        assert not controller.events("ended", bad)


async def test_requests_whose_responses_are_not_read_fill_no_memory() -> None:
    """An agent that does not read its responses is not read any further, so they do not fill the memory."""
    async with hostile_setup() as setup:
        bad = await setup.agent("bad", probe_interval=1.0)
        controller = await setup.controller(bad, no_op_budget=False)
        controller.forget_peak()
        before = controller.peak

        bad.child.send(do="unread_requests", count=10 * REQUESTS)
        ended = await controller.ended(bad, 120)

        grown = controller.peak - before
        print_figure(f"requests with no answer read: ended {ended['code']}, RSS {grown / MIB:+.1f} MiB at most")
        assert grown <= GROWTH


TYPES = [
    "session",
    "direct-tcpip",
    "x11",
    "auth-agent@openssh.com",
    "forwarded-streamlocal@openssh.com",
    "direct-streamlocal@openssh.com",
    "tun@openssh.com",
    "\x1b[2J",
]


async def test_channels_of_every_other_type_are_refused() -> None:
    """A channel of any type or address that the controller did not request is refused."""
    async with hostile_setup() as setup:
        bad = await setup.agent("bad")
        controller = await setup.controller(bad)

        for type_ in TYPES:
            did = await bad.do("opens", type=type_, count=50)
            assert (did["answered"] % 50, did["accepted"]) == (0, 0)
        did = await bad.do("opens", type="forwarded-tcpip", count=50, host="127.0.0.2")

        assert did["accepted"] == 0
        assert not controller.events("ended", bad)
        await controller.probed(bad, more=2)
        held = await controller.holds()
        print_figure(
            f"{len(TYPES)} other types and another address, 50 opens each: none accepted, {held['channels']} left"
        )
        assert held["channels"] <= 2


async def test_long_debug_messages_are_neither_kept_nor_printed() -> None:
    """Debug messages of the largest size, with control characters, are discarded and never printed."""
    async with hostile_setup() as setup:
        bad = await setup.agent("bad", probe_interval=10.0)
        controller = await setup.controller(bad, no_op_budget=False)
        before = controller.resident

        did = await bad.do("debugs", count=REQUESTS // 10, size=30_000)
        await until(lambda: controller.child.lines)

        grown = controller.resident - before
        print_figure(f"{did['sent']} debug messages of 30 kB: RSS {grown / MIB:+.1f} MiB")
        assert grown <= GROWTH
        assert not controller.events("ended", bad)
