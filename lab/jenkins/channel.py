"""Jenkins' end of a channel to an agent, over the stdin and stdout of an ssh process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, TypeVar, cast

from lab.jenkins import remoting
from lab.processes import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.processes import Process

Result = TypeVar("Result")


class ChannelClosedError(LabError):
    """The agent's end of the channel is gone."""


class Channel:
    """A channel that is open: the handshake is done."""

    def __init__(self, process: Process, noise: bytes) -> None:
        self._process = process
        self.noise = noise
        """What came on the agent's stdout besides the handshake; Jenkins logs it."""

    @classmethod
    def open(cls, process: Process, *, timeout: float) -> Channel:
        """Do the handshake on a process; raises HandshakeError, or TimeoutError after `timeout` seconds."""
        to_agent, from_agent = _pipes(process)
        return cls(process, _in_time(process, lambda: remoting.negotiate(from_agent, to_agent), timeout))

    def sh(self, script: str, *, timeout: float = 60.0) -> tuple[int, str]:
        """Run a pipeline's `sh` step; returns its status and output. Raises ChannelClosedError if the agent is gone."""
        to_agent, from_agent = _pipes(self._process)

        def step() -> dict[str, str] | None:
            remoting.send(to_agent, {"sh": script})
            return remoting.receive(from_agent)

        try:
            result = _in_time(self._process, step, timeout)
        except OSError as broken:
            raise ChannelClosedError(f"the channel is closed: {broken}") from broken
        if result is None:
            raise ChannelClosedError("the channel is closed: the agent has ended the stream")
        return int(result["status"]), result["output"]

    def close(self) -> None:
        """Disconnect; the agent's program ends."""
        self._process.end(patience=2)


def _pipes(process: Process) -> tuple[IO[bytes], IO[bytes]]:
    return cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)


def _in_time(process: Process, act: Callable[[], Result], timeout: float) -> Result:
    """Run something that reads and writes a process's pipes; after the timeout, kill the process, which ends it."""
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(act)
        try:
            return waiting.result(timeout)
        except TimeoutError:
            process.kill()
            raise
