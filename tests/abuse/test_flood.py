"""Agents that ask too much: what they get is bounded, and other agents' tunnels do not feel it."""

import statistics

import pytest

from tests.abuse.lab import HOSTILE, MIB, OPENS, REQUESTS, Agent, Controller, Facts, staged, tell
from tests.ssh.ssh_server import until

ROUNDS = 5
"""Times that a ratio is measured at most: other programs on the machine can only make it worse."""
GROWTH = 32 * MIB


def p99(took: list[float]) -> float:
    """Return the 99th percentile, in milliseconds."""
    return statistics.quantiles(took, n=100)[98] * 1000


ATTACKS: list[tuple[str, Facts, int]] = [
    ("requests", {"count": REQUESTS}, 2),
    # Short ones, in which the first tenth of a second weighs more, and the worst of some dozens is the p99.
    ("debugs", {"count": 10_000, "size": 20}, 5),
    ("opens", {"count": 5_000, "type": "session"}, 5),
    ("rekeys", {"count": 400}, 5),
]
"""What is sent, how much of it, and how many times slower another tunnel's probes may become by it."""


@pytest.mark.timeout(600)
async def test_a_flood_at_most_doubles_the_probes_of_another_tunnel() -> None:
    """One loop serves all: what one agent makes it do is held to a share, whatever the messages are."""
    async with staged() as stage:
        good = await stage.agent("good", probe_interval=0.02)
        for attack, how, bound in ATTACKS:
            for _ in range(ROUNDS):
                bad = await stage.agent("bad", probe_interval=10.0)
                controller = await stage.controller(good, bad)
                ratio, words = await _slowed(controller, good, bad, attack, how)
                controller.child.process.kill()
                bad.child.process.kill()
                tell(words)
                if ratio <= bound:
                    break
            assert ratio <= bound, words


@pytest.mark.timeout(600)
async def test_agents_that_flood_together_end_no_tunnel_of_another() -> None:
    """However many send messages that carry nothing, another agent's probes come back, and its tunnel stands."""
    async with staged() as stage:
        good = await stage.agent("good", probe_interval=0.05)
        bad = [await stage.agent(f"bad-{number}", probe_interval=10.0) for number in range(HOSTILE)]
        controller = await stage.controller(good, *bad)
        calm = await controller.probed(good, more=50, deadline=30)

        for one in bad:
            one.child.tell(do="ignores", count=100 * REQUESTS)
        stormy = await controller.probed(good, more=100, deadline=60)

        assert not controller.events("ended", good)
        assert {event["code"] for one in bad for event in controller.events("ended", one)} <= {"abusive"}
        tell(
            f"{HOSTILE} agents flood: another's probe p99 {p99(calm):.1f} ms before, {p99(stormy):.1f} ms during "
            f"(medians {statistics.median(calm) * 1000:.1f} and {statistics.median(stormy) * 1000:.1f} ms)"
        )


async def _slowed(controller: Controller, good: Agent, bad: Agent, attack: str, how: Facts) -> tuple[float, str]:
    """Let one agent flood; returns how many times slower the probes of another became, and the words for it."""
    calm = await controller.probed(good, more=100, deadline=30)
    before, seen = controller.resident, len(controller.events("probed", good))

    did = await bad.do(attack, deadline=300, **how)

    stormy = [event["took"] for event in controller.events("probed", good)[seen:]]
    grown, ended = controller.resident - before, controller.events("ended", bad)
    assert not controller.events("ended", good)
    assert not ended or ended[0]["code"] == "abusive"
    assert grown <= GROWTH
    ratio = p99(stormy) / p99(calm)
    return ratio, (
        f"{attack} {did}: another tunnel's probe p99 {p99(calm):.1f} ms before, {p99(stormy):.1f} ms during "
        f"({ratio:.2f} x of {len(stormy)}; medians {statistics.median(calm) * 1000:.1f} and "
        f"{statistics.median(stormy) * 1000:.1f} ms); RSS {grown / MIB:+.1f} MiB; {_end(ended)}"
    )


def _end(ended: list[Facts]) -> str:
    return f"ended: {ended[0]['code']}" if ended else "still up"


async def test_five_thousand_opens_get_no_more_than_max_channels() -> None:
    """What is served is bounded, nothing is left of the rest, and other tunnels stand."""
    async with staged() as stage:
        good, bad = await stage.agent("good"), await stage.agent("bad", probe_interval=1.0)
        controller = await stage.controller(good, bad, max_channels=16)

        did = await bad.do("opens", type="forwarded-tcpip", count=5000)

        held = await controller.holds()
        tell(f"5,000 opens: {did}; {held['channels']} channels held; {_end(controller.events('ended', bad))}")
        assert 1 <= did["accepted"] <= 18
        # And the two ends of each tunnel's own probe, where one is on its way.
        assert held["channels"] <= 18 + 4
        assert not controller.events("ended", good)
        assert {event["code"] for event in controller.events("ended", bad)} <= {"abusive"}
        await _let_go(bad, controller)
        await controller.probed(good, more=3)


async def _let_go(bad: Agent, controller: Controller) -> None:
    """End the bad agent, and see that nothing of it is left but the other tunnel's own."""
    bad.child.process.kill()
    await controller.ended(bad)
    for _ in range(50):
        held = await controller.holds()
        if held["channels"] <= 2:
            return
    raise AssertionError(held)


async def test_rejected_opens_leave_no_channel_behind() -> None:
    """With the budget lifted, so that all of them are really processed: neither a channel nor memory stays."""
    async with staged() as stage:
        # One probe and no more: an agent that opens without end takes the probe's own place, and so loses its tunnel.
        bad = await stage.agent("bad", probe_interval=3600.0)
        controller = await stage.controller(bad, max_channels=1, no_op_budget=False)
        await bad.do("opens", type="forwarded-tcpip", count=2000, unanswered=512)
        before, begun = controller.resident, await controller.holds()

        did = await bad.do("opens", deadline=1800, type="forwarded-tcpip", count=OPENS, unanswered=512)

        grown, held = controller.resident - before, await controller.holds()
        tell(
            f"{did['sent']} rejected opens in {held['cpu'] - begun['cpu']:.1f} s of CPU: "
            f"{held['channels']} channels left, RSS {grown / MIB:+.1f} MiB"
        )
        assert did["sent"] == OPENS
        assert did["accepted"] <= 3
        assert held["channels"] <= 4
        assert grown <= 8 * MIB
        assert not controller.events("ended", bad)


async def test_requests_whose_answers_are_not_read_fill_no_memory() -> None:
    """The answers wait in our own process, so the agent that does not take them is not read any further."""
    async with staged() as stage:
        bad = await stage.agent("bad", probe_interval=1.0)
        controller = await stage.controller(bad, no_op_budget=False)
        controller.forget_peak()
        before = controller.peak

        bad.child.tell(do="deaf_requests", count=10 * REQUESTS)
        ended = await controller.ended(bad, 120)

        grown = controller.peak - before
        tell(f"requests with no answer read: ended {ended['code']}, RSS {grown / MIB:+.1f} MiB at most")
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
    """A server may open only what was asked for: nothing of ours is reached by another kind of channel."""
    async with staged() as stage:
        bad = await stage.agent("bad")
        controller = await stage.controller(bad)

        for type_ in TYPES:
            did = await bad.do("opens", type=type_, count=50)
            assert (did["answered"] % 50, did["accepted"]) == (0, 0)
        did = await bad.do("opens", type="forwarded-tcpip", count=50, host="127.0.0.2")

        assert did["accepted"] == 0
        assert not controller.events("ended", bad)
        await controller.probed(bad, more=2)
        held = await controller.holds()
        tell(f"{len(TYPES)} other types and another address, 50 opens each: none accepted, {held['channels']} left")
        assert held["channels"] <= 2


async def test_a_long_debug_message_neither_grows_nor_speaks() -> None:
    """Debug messages as large as a packet may be, with control characters: read past, and never written."""
    async with staged() as stage:
        bad = await stage.agent("bad", probe_interval=10.0)
        controller = await stage.controller(bad, no_op_budget=False)
        before = controller.resident

        did = await bad.do("debugs", count=REQUESTS // 10, size=30_000)
        await until(lambda: controller.child.said)

        grown = controller.resident - before
        tell(f"{did['sent']} debug messages of 30 kB: RSS {grown / MIB:+.1f} MiB")
        assert grown <= GROWTH
        assert not controller.events("ended", bad)
