"""A harness for workers: their settings, the events that they report, and a channel handler."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelBound, TunnelProbed
from tunnelmgr.core.oci import WELL_KNOWN_PATH
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.ssh.login import Login
from tunnelmgr.tunnel.admission import Admission
from tunnelmgr.tunnel.proof import Prover
from tunnelmgr.tunnel.settings import TunnelSettings


@dataclass
class WorkerHarness:
    """Settings for a worker, and the events that it reports. Its channel handler answers probes and echoes data.

    With `waits_for_requests`, the handler is idle between requests, as the gate is, and each request that begins with
    `hold` is in progress until more data comes; `holding` counts them. With `takes_arrivals`, it takes later probes of
    a channel without an answer, as the gate does.
    """

    login: Login
    events: list[Event] = field(default_factory=list)
    prover: Prover = field(default_factory=Prover)
    serving: int = 0
    cancelled: int = 0
    silent: bool = False
    breaks: bool = False
    hangs_up: bool = False
    waits_for_requests: bool = False
    takes_arrivals: bool = False
    arrivals: int = 0
    holding: int = 0
    opened: int = 0
    proofs: int = 0

    def settings(self, **changes: object) -> TunnelSettings:
        """Return settings with short times."""
        plain = TunnelSettings(
            login=self.login,
            probe_interval=0.1,
            max_channels=128,
            drain=5.0,
            admission=Admission(),
            prover=self.prover,
            channel_handler=self,
            events=self,
        )
        return replace(plain, **changes)

    def report(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    async def serve_channel(
        self,
        channel: AgentChannel,
        spec: TunnelSpec,
        forward: Forward,  # noqa: ARG002 - the protocol's form
        endpoint: Endpoint,
    ) -> None:
        """Answer a probe with its proof, and echo everything else."""
        self.serving += 1
        self.opened += 1
        try:
            await self._serve(channel, spec, endpoint)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.serving -= 1

    def _takes(self, agent: AgentId, listener: str, data: bytes) -> bool:
        """Take a probe that needs no answer, as the gate does."""
        nonce = data.partition(b"Nonce: ")[2].partition(b"\r\n")[0].decode()
        taken = self.prover.note_arrival(nonce, agent, listener)
        self.arrivals += taken
        return taken

    async def _serve(self, channel: AgentChannel, spec: TunnelSpec, endpoint: Endpoint) -> None:
        with suppress(ConnectionError):
            while (not self.waits_for_requests or await channel.wanted()) and (data := await channel.read()):
                if data.startswith(f"GET {WELL_KNOWN_PATH} ".encode()):
                    if self.silent:
                        await asyncio.Event().wait()
                    nonce = data.partition(b"Nonce: ")[2].partition(b"\r\n")[0].decode()
                    body = f'{{"proof": "{self.prover.proof(nonce, spec.agent, str(endpoint))}"}}'
                    await channel.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                    self.proofs += 1
                    if self.takes_arrivals:
                        channel.intercept(partial(self._takes, spec.agent, str(endpoint)))
                    if self.hangs_up:
                        return
                    continue
                if self.waits_for_requests and data.startswith(b"hold"):
                    self.holding += 1
                    data += await channel.read()
                if self.breaks:
                    raise RuntimeError("a fault of ours")
                await channel.write(data)

    def of(self, kind: type) -> list[Event]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def bound(self) -> TunnelBound:
        """The latest TunnelBound event."""
        latest = self.of(TunnelBound)[-1]
        assert isinstance(latest, TunnelBound)
        return latest

    async def up(self, probes: int = 1) -> None:
        """Wait until this many probes have come back."""
        await until(lambda: len(self.of(TunnelProbed)) >= probes, deadline=20)
