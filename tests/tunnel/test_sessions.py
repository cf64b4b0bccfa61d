"""The channels of a tunnel: their number is limited, and decreases again."""

import asyncio

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, forward
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import ping, running_worker, with_probe_timeout
from tests.until import until
from tunnelmgr.core.events import TunnelProbed
from tunnelmgr.core.oci import WELL_KNOWN_PATH
from tunnelmgr.dataplane import fair_queue


async def test_no_more_channels_are_open_than_allowed(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 channel opens, 500 at a time, are limited, while the tunnel stays up and its probes are answered."""
    # The no-op budget would throttle this flood, depending on the speed of this machine.
    monkeypatch.setattr(fair_queue, "NO_OP_BURST", 60.0)
    one = forward()
    async with (
        running_worker(sshd.spec(one), with_probe_timeout(10.0, harness.settings(max_channels=16))) as life,
        asyncio.timeout(60),
    ):
        await harness.up()
        host, port = one.listen[0].host, one.listen[0].port
        opened: list[object] = []
        for _ in range(10):  # both ends live in this process, and a probe must have its turn
            opens = (sshd.connection.open_connection(host, port) for _ in range(500))
            opened += await asyncio.gather(*opens, return_exceptions=True)
        accepted = [each for each in opened if not isinstance(each, BaseException)]

        assert {type(each) for each in opened if isinstance(each, BaseException)} == {asyncssh.ChannelOpenError}
        # Probes do not count towards the limit: one channel may have taken the place of a probe, and is ended again.
        assert len(accepted) >= 15
        assert harness.serving <= 18
        await harness.up(len(harness.of(TunnelProbed)) + 2)
        await until(lambda: harness.serving <= 17)  # one is kept for probes

        for _, writer in accepted:
            writer.close()
        await until(lambda: life.worker._sessions._channels == 1)
        _, writer = await ping(one.listen[0])
        writer.close()


async def test_channels_that_end_make_room(sshd: Sshd, harness: WorkerHarness) -> None:
    """The number of channels decreases again however a channel ends."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings(max_channels=2)) as life:
        await harness.up()
        for turn in range(20):
            _, writer = await ping(one.listen[0])
            if turn % 2:
                writer.transport.abort()
            else:
                writer.close()
            await until(lambda: life.worker._sessions._channels == 1)


@pytest.mark.usefixtures("ignore_resource_warnings")
async def test_sessions_that_still_run_without_a_channel_count(sshd: Sshd, harness: WorkerHarness) -> None:
    """An agent that closes channels whose requests wait, and opens others, has no more sessions than channels."""
    one, declined = forward(), 0
    settings = harness.settings(max_channels=4, probe_interval=3600.0)
    async with running_worker(sshd.spec(one), settings) as life, asyncio.timeout(60):
        await harness.up()
        harness.silent = True
        for _ in range(10):
            try:
                _, writer = await sshd.connection.open_connection(one.listen[0].host, one.listen[0].port)
            except asyncssh.ChannelOpenError:
                declined += 1
                continue
            writer.write(f"GET {WELL_KNOWN_PATH} ".encode())
            writer.close()
            await until(lambda: life.worker._sessions._channels == 1)

        assert (harness.serving, declined) == (5, 6)  # one is kept for probes
