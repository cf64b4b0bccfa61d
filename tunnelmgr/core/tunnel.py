"""The tunnel that an agent should have (`TunnelSpec`), and the state of the one that it has (`TunnelStatus`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple, assert_never

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.trust import HostTrust
from tunnelmgr.errors import KeyTooPowerfulError, ListenRefusedError, excess_text


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

    The tunnel is up only if the agent listens on the first of `listen`; the other addresses are optional. If `target`
    is a read-only replica, pushes and deletes go to `push_target`, or are refused with the text `writer`.

    `upstream` is the kind of the registry at `target`: one that stores what is pushed, or a pull-through cache of
    another registry (`proxy`), to which nobody can push. `namespace` is the host of that other registry in the names of
    its images, such as `docker.io`; empty if it is not known.
    """

    name: str
    listen: tuple[Endpoint, ...]
    target: Endpoint
    protocol: Literal["registry", "tcp"] = "registry"
    push_target: Endpoint | None = None
    writer: str = ""
    upstream: Literal["registry", "proxy"] = "registry"
    namespace: str = ""


def registries(forwards: Iterable[Forward]) -> tuple[Endpoint, ...]:
    """Return the registries that store images and to which forwards lead, each once, in their order."""
    return _targets(forwards, "registry")


def pull_through_caches(forwards: Iterable[Forward]) -> tuple[Endpoint, ...]:
    """Return the pull-through caches to which forwards lead, each once, in their order."""
    return _targets(forwards, "proxy")


def _targets(forwards: Iterable[Forward], upstream: str) -> tuple[Endpoint, ...]:
    chosen = (forward for forward in forwards if forward.protocol == "registry" and forward.upstream == upstream)
    return tuple(dict.fromkeys(forward.target for forward in chosen))


def push_registries(forwards: Iterable[Forward]) -> tuple[Endpoint, ...]:
    """Return the other registries to which pushes go, each once, in their order."""
    return tuple(dict.fromkeys(forward.push_target for forward in forwards if forward.push_target is not None))


class TunnelSpec(NamedTuple):
    """Everything that a tunnel is made from; an existing tunnel whose spec has changed is replaced.

    A tuple, because `plan` may have to make thousands of them in one turn of the controller's loop.
    """

    agent: AgentId
    incarnation: str
    name: str
    group: str
    addresses: tuple[str, ...]
    port: int
    forwards: tuple[Forward, ...]
    trust: HostTrust
    restricted: bool = False
    """Whether the login key must be able to do no more than a tunnel needs."""


class Phase(StrEnum):
    """How far an agent's tunnel has come."""

    AWAITING_IDENTITY = "awaiting-identity"  # no evidence of its host key yet, so it is not dialled
    CONNECTING = "connecting"  # a worker dials, logs in or binds
    UP = "up"  # a probe has come back through the agent's own listener
    DRAINING = "draining"  # no longer listening; transfers may finish
    DOWN = "down"  # no tunnel; the next try is at `retry_at`, if any
    QUARANTINED = "quarantined"  # refused until an operator releases it


@dataclass(frozen=True, slots=True)
class Bindings:
    """The listen addresses of a tunnel, by the answer of the agent's sshd.

    It listens on `held` for us and refused `refused`; of those, another process on the agent answers on `conflicts`.
    """

    held: tuple[Endpoint, ...] = ()
    refused: tuple[Endpoint, ...] = ()
    conflicts: tuple[str, ...] = ()

    @property
    def error(self) -> str | None:
        """The code of what is wrong with a tunnel that is up nevertheless."""
        return ListenRefusedError.code if self.conflicts else None

    @property
    def message(self) -> str:
        """What is wrong with a tunnel that is up nevertheless, "" if nothing is."""
        if not self.conflicts:
            return ""
        return (
            f"another process on the agent answers on {', '.join(self.conflicts)}, where clients may connect first. "
            "Find it there with `ss -ltnp`, and stop it"
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """The last probe that came back: when, and its round-trip time in milliseconds."""

    at: float
    ms: float


@dataclass(frozen=True, slots=True)
class Resting:
    """Nothing is under way: the agent awaits its identity, is down, or is quarantined, as its record gives `phase`.

    `failures` counts the failed searches or dials in a row, `error` and `message` describe the last one. The next try
    is at `retry_at`; None means now, if the record allows a try at all.
    """

    phase: Phase
    since: float
    life: int = 0
    failures: int = 0
    error: str | None = None
    message: str = ""
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Seeking:
    """A search is under way: for evidence or, in quarantine, for a disputed key. It ends in `resting` or after it."""

    resting: Resting

    @property
    def phase(self) -> Phase:
        """The phase in which the search began."""
        return self.resting.phase

    @property
    def since(self) -> float:
        """When that phase began."""
        return self.resting.since

    @property
    def life(self) -> int:
        """The number of the agent's last worker."""
        return self.resting.life

    @property
    def failures(self) -> int:
        """The failures in a row before this search."""
        return self.resting.failures

    @property
    def error(self) -> str | None:
        """The code of the last failure."""
        return self.resting.error

    @property
    def message(self) -> str:
        """The message of the last failure."""
        return self.resting.message


@dataclass(frozen=True, slots=True)
class Connecting:
    """A worker dials, logs in or binds; `failures`, `error` and `message` are those of the tries before."""

    phase: ClassVar[Phase] = Phase.CONNECTING

    since: float
    life: int
    spec: TunnelSpec
    failures: int = 0
    error: str | None = None
    message: str = ""
    login_key: str | None = None
    bindings: Bindings = Bindings()
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Up:
    """A probe has come back; `failures` are those of the tries before, which count again if the tunnel ends soon.

    `excess` is what the login key could do on the agent beyond what a tunnel needs.
    """

    phase: ClassVar[Phase] = Phase.UP

    since: float
    life: int
    spec: TunnelSpec
    probe: Probe
    failures: int = 0
    login_key: str | None = None
    bindings: Bindings = Bindings()
    revoked: bool = False
    excess: tuple[str, ...] = ()

    @property
    def error(self) -> str | None:
        """The code of what is wrong although the tunnel is up, if anything is."""
        return self.bindings.error or (KeyTooPowerfulError.code if self.excess else None)

    @property
    def message(self) -> str:
        """What is wrong although the tunnel is up, "" if nothing is."""
        return self.bindings.message or (excess_text(self.excess) if self.excess else "")


@dataclass(frozen=True, slots=True)
class Draining:
    """The worker no longer listens and lets transfers finish; `error` and `message` are those from before the drain."""

    phase: ClassVar[Phase] = Phase.DRAINING

    since: float
    life: int
    spec: TunnelSpec
    failures: int = 0
    error: str | None = None
    message: str = ""
    probe: Probe | None = None
    login_key: str | None = None
    bindings: Bindings = Bindings()
    revoked: bool = False


Working = Connecting | Up | Draining
"""A worker is under way. `life` numbers an agent's workers: a report from an earlier one is ignored. `revoked` is set
once the worker was asked to end at once, so that it is not asked again."""

TunnelStatus = Resting | Seeking | Working
"""The state of one agent's tunnel. Times are seconds since the epoch."""


def at_rest(status: Resting | Seeking) -> Resting:
    """Return the status in which a search ends."""
    return status.resting if isinstance(status, Seeking) else status


def drained(status: Working, now: float) -> Draining:
    """Return the status of a worker that is asked to drain."""
    match status:
        case Connecting():
            probe = None
        case Up() | Draining():
            probe = status.probe
        case _:
            assert_never(status)
    return Draining(
        since=now,
        life=status.life,
        spec=status.spec,
        failures=status.failures,
        error=status.error,
        message=status.message,
        probe=probe,
        login_key=status.login_key,
        bindings=status.bindings,
        revoked=status.revoked,
    )
