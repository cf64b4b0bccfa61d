"""Agents that ask too much: what they get is bounded, and other agents' tunnels do not feel it."""

import statistics

from tests.abuse.lab import MIB, REQUESTS, staged


def p99(took: list[float]) -> float:
    """Return the 99th percentile, in milliseconds."""
    return statistics.quantiles(took, n=100)[98] * 1000


async def test_a_flood_of_requests_at_most_doubles_the_probes_of_another_tunnel() -> None:
    """One loop serves all: what one agent makes it do is held to a share, and then the agent is let go."""
    async with staged() as stage:
        good = await stage.agent("good", probe_interval=0.02)
        bad = await stage.agent("bad", probe_interval=10.0)
        controller = await stage.controller(good, bad)
        calm = await controller.probed(good, more=200, deadline=30)
        before, from_ = controller.resident, len(controller.events("probed", good))

        sent = await bad.do("requests", count=REQUESTS, deadline=300)

        print(sent, controller.child.said[-3:])
        stormy = [event["took"] for event in controller.events("probed", good)[from_:]]
        grown = (controller.resident - before) / MIB
        ended = controller.events("ended", bad)
        cpu = await controller.holds()
        assert not controller.events("ended", good)
    print(
        f"{sent['sent']} of {REQUESTS} global requests: another tunnel's probe p99 {p99(calm):.1f} ms before, "
        f"{p99(stormy):.1f} ms during ({p99(stormy) / p99(calm):.2f} x, {len(stormy)} probes, median "
        f"{statistics.median(calm)*1000:.1f} and {statistics.median(stormy)*1000:.1f}); RSS {grown:+.1f} MiB; {ended} {cpu}"
    )
    times = [(event["at"], event["took"]*1000) for event in controller.events("probed", good)[from_:]]
    for a, b in ((0, 1), (1, 2), (2, 5), (5, 30)):
        ours = [t for at, t in times if a <= at - times[0][0] < b]
        if len(ours) > 2: print("PHASE", a, b, len(ours), f"median {statistics.median(ours):.1f} p99 {p99(ours)/1000:.1f} max {max(ours):.1f}")
    assert not ended or ended[0]["code"] == "abusive"
    assert p99(stormy) <= 2 * p99(calm)
    assert grown <= 32
