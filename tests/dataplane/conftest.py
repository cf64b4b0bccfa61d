"""The data plane is tested over the same connections as the SSH adapter, and the fair queue by a clock of ours."""

import pytest

from tests.dataplane.counted_steps import CpuTime
from tests.ssh.conftest import _home, harness, host_key, ignore_resource_warnings, key, login, sshd, unverified_asyncssh
from tunnelmgr.dataplane import fair_queue

__all__ = ["_home", "harness", "host_key", "ignore_resource_warnings", "key", "login", "sshd", "unverified_asyncssh"]


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> CpuTime:
    """Have the queue measure by a clock of ours."""
    cpu = CpuTime()
    monkeypatch.setattr(fair_queue, "thread_time", cpu)
    monkeypatch.setattr(fair_queue, "monotonic", lambda: cpu.clock)
    return cpu
