"""Fixtures for tests with SSH connections: keys, and an agent's sshd on loopback."""

import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.ssh import newest_asyncssh  # noqa: F401 - its effect is wanted
from tests.ssh.ssh_server import Sshd, generate, running_sshd
from tests.ssh.worker_harness import WorkerHarness
from tunnelmgr.dataplane import fast_path
from tunnelmgr.ssh.login import Login


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tester's own keys and agent out of every test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="session")
def key() -> asyncssh.SSHKey:
    """Make the controller's key."""
    return generate()


@pytest.fixture(scope="session")
def host_key() -> asyncssh.SSHKey:
    """Make the agent's host key."""
    return generate()


@pytest.fixture
def login(key: asyncssh.SSHKey) -> Login:
    """Log in as the controller does."""
    return Login("tunnel", key, 5.0)


@pytest.fixture
async def sshd(key: asyncssh.SSHKey, host_key: asyncssh.SSHKey) -> AsyncIterator[Sshd]:
    """Run an agent's sshd with ordinary behaviour."""
    async with running_sshd(Sshd(host_key, key)) as sshd:
        yield sshd


@pytest.fixture
def unverified_asyncssh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Treat the installed release of asyncssh as unverified."""
    monkeypatch.setattr(fast_path, "VERIFIED_RELEASES", frozenset())
    fast_path.fast_path_status.cache_clear()
    yield
    fast_path.fast_path_status.cache_clear()


@pytest.fixture
def harness(login: Login) -> WorkerHarness:
    """Make a worker harness."""
    return WorkerHarness(login)


@pytest.fixture
def ignore_resource_warnings() -> Iterator[None]:
    """Collect the sockets that asyncssh's server side leaves if a channel closes while it is connecting."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
