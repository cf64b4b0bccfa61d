"""The controller stops or is killed during a pull, or its disk is full; the next start continues."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.images import make_image, skopeo_copy
from lab.processes import Process, until

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

BLOB_KIB = 8192
IN_FLIGHT = 8 * BLOB_KIB
"""More bytes than sockets and windows hold, so that the controller still has the end."""
IN_SOCKETS = 16 * 1024 * 1024
"""Bytes that the agent's sshd may have passed on and a slow client has not read."""
DRAIN = 10.0
"""Seconds of `controller.drain` in the lab."""


def push_big_layer(field: "Field", agent: "LabAgent", kib: int = BLOB_KIB) -> str:
    """Push an image with one large layer and return that layer's digest."""
    layout = make_image(field.folder / "big", layers=1, kib_per_layer=kib)
    pushed = skopeo_copy(agent, layout, "docker://localhost:5000/team/big:1")
    assert pushed.returncode == 0, pushed.stderr
    blobs = (field.folder / "big" / "layout" / "blobs" / "sha256").iterdir()
    return f"sha256:{max(blobs, key=lambda blob: blob.stat().st_size).name}"


def pull_slowly(field: "Field", agent: "LabAgent", digest: str, rate: str = "2M") -> Process:
    """Start to pull a layer at a limited rate, and return when bytes arrive."""
    url = f"http://localhost:5000/v2/team/big/blobs/{digest}"
    target = field.folder / "slow"
    pull = agent.popen(["curl", "-fsS", "--limit-rate", rate, "-o", str(target), url], log=field.folder / "curl.log")
    until(lambda: target.exists() and target.stat().st_size > 100_000, "bytes arrive")
    return pull


def test_a_stop_takes_the_registry_from_nobody_while_one_agent_pulls(field: "Field") -> None:
    """After SIGTERM, every other request of another agent is answered until the pull in progress has ended."""
    puller, other = field.boot("puller"), field.boot("other")
    field.up(puller, other)
    digest = push_big_layer(field, puller, IN_FLIGHT)
    pull = pull_slowly(field, puller, digest, "10M")

    began = time.monotonic()
    field.controller.terminate()
    answered = 0
    while field.reaches(other):
        answered += 1
    arrived = (field.folder / "slow").stat().st_size
    refused_after = time.monotonic() - began
    status = field.controller.stop(patience=DRAIN - refused_after + 2)
    until(lambda: pull.poll() is not None, "curl ends")

    assert (status, pull.returncode) == (0, 0)
    assert (field.folder / "slow").stat().st_size > IN_FLIGHT * 1024
    assert arrived > IN_FLIGHT * 1024 - IN_SOCKETS, "the listeners closed before the pull had ended"
    assert answered > 20
    assert not other.listeners(5000)


def test_a_graceful_stop_lets_a_pull_finish(field: "Field") -> None:
    """After SIGTERM, the transfer in progress still arrives whole, and nobody listens at the end."""
    agent = field.boot("builder")
    field.up(agent)
    digest = push_big_layer(field, agent)
    pull = pull_slowly(field, agent, digest)

    status = field.controller.stop(patience=30)

    until(lambda: pull.poll() is not None, "curl ends")
    assert (status, pull.returncode) == (0, 0)
    assert (field.folder / "slow").stat().st_size > BLOB_KIB * 1024
    assert not agent.listeners(5000)


def test_an_idle_connection_does_not_delay_a_stop(field: "Field") -> None:
    """An idle connection is closed when the drain starts, long before the deadline of 10 s."""
    agent = field.boot("builder")
    field.up(agent)
    talk = 'exec 3<>/dev/tcp/127.0.0.1/5000; printf "GET /v2/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" >&3; cat <&3'
    idle = agent.popen(["bash", "-c", talk])
    until(lambda: field.controller.agent("builder")["channels"] == 1, "the connection is open")

    status = field.controller.stop(patience=7)

    until(lambda: idle.poll() is not None, "the client sees the end")
    assert status == 0


def test_sigkill_during_a_pull_costs_only_that_pull(field: "Field") -> None:
    """After SIGKILL, the next start reads the state, takes the port again, and serves the same layer whole."""
    agent = field.boot("builder")
    field.up(agent)
    digest = push_big_layer(field, agent, IN_FLIGHT)
    pull = pull_slowly(field, agent, digest, "8M")

    field.controller.kill()
    until(lambda: pull.poll() is not None, "curl ends", timeout=30)
    field.controller.start()
    field.controller.wait_phase("builder", "up", timeout=30)

    assert pull.returncode != 0
    url = f"http://localhost:5000/v2/team/big/blobs/{digest}"
    again = agent.run(["sh", "-c", f"curl -fsS {url} | sha256sum"], timeout=30, check=True)
    assert again.stdout.split()[0] == digest.removeprefix("sha256:")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", place], check=True, timeout=10)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True, timeout=10)


def test_a_full_disk_is_shown_and_costs_no_tunnel(field: "Field", small_disk: Path) -> None:
    """While the state cannot be written, tunnels open and close as usual and `status` shows it."""
    agent = field.boot("builder")
    field.static(agent)
    text = field.controller.file.read_text()
    old = f"sqlite:///{field.controller.folder}/state.db"
    field.controller.file.write_text(text.replace(old, f"sqlite:///{small_disk}/state.db"))
    field.controller.start()
    field.controller.wait_phase("builder", "up")

    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True, timeout=10)
    agent.faults.reset_connections()
    until(lambda: not field.controller.client.status()["state"]["ok"], "the full disk is shown", timeout=20)
    field.controller.wait_phase("builder", "up")
    reached = field.reaches(agent)
    filler.unlink()
    until(lambda: field.controller.client.status()["state"]["ok"], "the state is written again", timeout=20)
    field.controller.kill()
    field.controller.start()

    assert reached
    assert "lost" in [moment["step"] for moment in field.controller.wait_phase("builder", "up", timeout=30)["history"]]
