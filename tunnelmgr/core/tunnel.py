"""What a tunnel is to be (`TunnelSpec`) and what one has come to (`TunnelStatus`)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.trust import HostTrust


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """A literal IP address and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Forward:
    """One remote forward: where the agent's sshd listens, and where its channels lead on our side.

    The first of `listen` must hold for the tunnel to be up; the others should.
    """

    name: str
    listen: tuple[Endpoint, ...]
    target: Endpoint
    protocol: Literal["registry", "tcp"] = "registry"


@dataclass(frozen=True, slots=True)
class TunnelSpec:
    """All that a tunnel is made from; where it differs from the one that stands, that one is replaced."""

    agent: AgentId
    incarnation: str
    name: str
    group: str
    addresses: tuple[str, ...]
    port: int
    forwards: tuple[Forward, ...]
    trust: HostTrust


class Phase(StrEnum):
    """Where an agent stands on its way to a tunnel."""

    AWAITING_IDENTITY = "awaiting-identity"  # no evidence of its key yet, so it is not dialled
    CONNECTING = "connecting"  # a dial is under way
    UP = "up"  # a probe has come back through the agent's own listener
    DRAINING = "draining"  # not listening any more; transfers may end
    DOWN = "down"  # no tunnel; the next try is at `retry_at`, if any
    QUARANTINED = "quarantined"  # refused until a person releases it


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """The state of one agent's tunnel.

    `life` numbers the workers of an agent: a report from an earlier one is ignored.
    `working` says that a worker (or a search for evidence) is under way, so that no second one starts; `revoked` that
    the worker was told to end at once, so that it is told so once.
    Times are seconds since the epoch; `probe_ms` is the last probe's round trip. `held` are the listen addresses that
    the agent's sshd holds for us, `refused` those it would not, `squatted` those of them where somebody else answers.
    """

    phase: Phase
    since: float
    life: int = 0
    working: bool = False
    revoked: bool = False
    spec: TunnelSpec | None = None
    failures: int = 0
    retry_at: float | None = None
    error: str | None = None
    message: str = ""
    probed_at: float | None = None
    probe_ms: float | None = None
    held: tuple[Endpoint, ...] = ()
    refused: tuple[Endpoint, ...] = ()
    squatted: tuple[str, ...] = ()
    login_key: str | None = None
