"""The trust methods that each source can serve, made from the configuration."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tunnelmgr.config import Config, SourceConfig
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.ports import HostKeySource
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.daemon.prepared import PreparedSource
from tunnelmgr.trust.authority import AuthorityKeys
from tunnelmgr.trust.certificate import Authority
from tunnelmgr.trust.console import ConsoleKeys
from tunnelmgr.trust.labels import LabelKeys
from tunnelmgr.trust.pinned import PinnedKeys
from tunnelmgr.trust.seeded import SeededKeys
from tunnelmgr.trust.tofu import FirstKey


@runtime_checkable
class ConsoleReader(Protocol):
    """A source that can read an instance's console."""

    def console_output(self, agent: Agent) -> str:
        """Return the console's text; blocks."""
        ...


@dataclass(frozen=True, slots=True)
class TrustInputs:
    """The lookups that the trust methods use.

    `key` and `certificate` request what an agent presents, without offering a credential; `seed` finds a stored seed.
    `clock` is the wall clock, by which certificates are valid.
    """

    key: Callable[[Agent], Awaitable[str]]
    certificate: Callable[[Agent], Awaitable[bytes]]
    seed: Callable[[str], Seed | None]
    clock: Callable[[], float]


def methods_of(prepared: PreparedSource, config: Config, inputs: TrustInputs) -> Mapping[Method, HostKeySource]:
    """Return the methods that a source can serve."""
    source = prepared.source
    methods: dict[Method, HostKeySource] = {
        Method.AUTHORITY: AuthorityKeys(authorities(source.config, config), inputs.certificate, inputs.clock),
        Method.SEEDED: SeededKeys(inputs.seed),
        Method.LABEL: LabelKeys(inputs.key),
        Method.TOFU: FirstKey(inputs.key),
    }
    if prepared.pinned is not None:
        methods[Method.PINNED] = PinnedKeys(prepared.pinned)
    if isinstance(source, ConsoleReader):
        methods[Method.CONSOLE] = ConsoleKeys(source.console_output)
    return methods


def authorities(source: SourceConfig, config: Config) -> list[Authority]:
    """Return the authorities that a source trusts."""
    return [
        Authority(entry.name, entry.key, entry.revocations, entry.max_validity)
        for entry in config.authorities_of(source)
    ]
