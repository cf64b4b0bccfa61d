"""How a worker tries what the login key could do: beside its work, or before it if the group is strict."""

import pytest

from tests.ssh.ssh_server import Sshd, forward
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import running_worker
from tests.until import until
from tunnelmgr.core.events import LoginKeyTested, TunnelBound
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import KeyTooPowerfulError, ProbeTimeoutError
from tunnelmgr.ssh import client, key_powers
from tunnelmgr.tunnel import worker


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the key soon."""
    monkeypatch.setattr(worker, "KEY_TEST_DELAY", 0.01)
    monkeypatch.setattr(worker, "KEY_TEST_SPREAD", 0.01)


async def test_an_agent_is_up_before_the_key_was_tried_and_the_answer_is_reported(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """The sshd of this test permits every port, and neither commands nor sftp."""
    async with running_worker(sshd.spec(forward()), harness.settings(), tests_key=True):
        await harness.up()
        await until(lambda: harness.of(LoginKeyTested) != [])

    (answer,) = harness.of(LoginKeyTested)
    assert answer.excess == ("listen on other ports", "connect to other ports")


async def test_without_need_nothing_is_tried(sshd: Sshd, harness: WorkerHarness) -> None:
    """A later life on the same machine asks for its own addresses only."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings()):
        await harness.up(probes=2)

    assert sshd.asked == list(one.listen)
    assert harness.of(LoginKeyTested) == []


async def test_a_strict_group_gets_no_listener_before_the_key_was_tried(sshd: Sshd, harness: WorkerHarness) -> None:
    """A key that could do more ends the tunnel before it has bound anything."""
    one = forward()
    spec = sshd.spec(one)._replace(restricted=True)
    async with running_worker(spec, harness.settings()) as life:
        with pytest.raises(KeyTooPowerfulError, match="listen on other ports"):
            await life.end()

    assert one.listen[0] not in sshd.asked
    assert harness.of(TunnelBound) == []
    assert len(harness.of(LoginKeyTested)) == 1


async def test_a_strict_group_whose_agent_restricts_the_key_is_up(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that it has no power lets the tunnel continue."""

    async def nothing(_connection: object) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(client, "excess", nothing)
    async with running_worker(sshd.spec(forward())._replace(restricted=True), harness.settings()):
        await harness.up()

    assert [answer.excess for answer in harness.of(LoginKeyTested)] == [()]


async def test_an_agent_that_does_not_answer_is_not_let_in_by_a_strict_group(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it is up, and is tried again in the next life."""
    monkeypatch.setattr(key_powers, "TIMEOUT", 0.2)
    sshd.swallows.add(Endpoint("127.0.0.1", key_powers.UNUSED_PORT))
    async with running_worker(sshd.spec(forward())._replace(restricted=True), harness.settings()) as life:
        with pytest.raises(ProbeTimeoutError):
            await life.end()

    async with running_worker(sshd.spec(forward()), harness.settings(), tests_key=True):
        await harness.up(probes=6)

    assert harness.of(LoginKeyTested) == []
