"""The trust methods that each source can serve, made from the configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunnelmgr.config import Config, SourceConfig
from tunnelmgr.core.ports import HostKeySource
from tunnelmgr.core.trust import Method
from tunnelmgr.daemon.prepared import PreparedSource
from tunnelmgr.trust.authority import AuthorityKeys
from tunnelmgr.trust.certificate import Authority
from tunnelmgr.trust.console import ConsoleKeys
from tunnelmgr.trust.labels import LabelKeys
from tunnelmgr.trust.lookups import ConsoleReader, HostKeyScanner, SeedLookup
from tunnelmgr.trust.pinned import PinnedKeys
from tunnelmgr.trust.seeded import SeededKeys
from tunnelmgr.trust.tofu import FirstKey


@dataclass(frozen=True, slots=True)
class TrustInputs:
    """The lookups that the trust methods use; `wall` is the wall clock, by which certificates are valid."""

    scanner: HostKeyScanner
    seeds: SeedLookup
    wall: Callable[[], float]


def methods_of(prepared: PreparedSource, config: Config, inputs: TrustInputs) -> Mapping[Method, HostKeySource]:
    """Return the methods that a source can serve."""
    source = prepared.source
    methods: dict[Method, HostKeySource] = {
        Method.AUTHORITY: AuthorityKeys(authorities(source.config, config), inputs.scanner, inputs.wall),
        Method.SEEDED: SeededKeys(inputs.seeds),
        Method.LABEL: LabelKeys(inputs.scanner),
        Method.TOFU: FirstKey(inputs.scanner),
    }
    if prepared.pinned is not None:
        methods[Method.PINNED] = PinnedKeys(prepared.pinned)
    if isinstance(source, ConsoleReader):
        methods[Method.CONSOLE] = ConsoleKeys(source)
    return methods


def authorities(source: SourceConfig, config: Config) -> list[Authority]:
    """Return the authorities that a source trusts."""
    return [
        Authority(entry.name, entry.key, entry.revocations, entry.max_validity)
        for entry in config.authorities_of(source)
    ]
