"""Sources are plug-ins: the entry point group `tunnelmgr.sources` maps a `type` to a `SourceType`."""

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Protocol

from pydantic import Field

from tunnelmgr.config.values import Duration, Name, Section, TrustOrder
from tunnelmgr.core.rules import Grouping
from tunnelmgr.core.snapshot import Snapshot


class SourceConfig(Section):
    """The keys of every `[[source]]`; a source type adds its own."""

    name: Name
    type: str
    group: Name = "default"
    trust: TrustOrder
    authorities: list[Name] | None = None
    poll: Annotated[Duration, Field(ge=0.1, le=86400)] = 15.0

    def groups(self) -> set[str]:
        """Return the groups that agents of this source may belong to."""
        return {self.group}

    def grouping(self) -> Grouping:
        """Return how agents are assigned to groups; the source itself assigns those of `groups` besides `group`."""
        return Grouping(self.group, chosen=frozenset(self.groups() - {self.group}))

    def exclusive(self) -> dict[str, str]:
        """Return the keys with a value that only one source may have."""
        return {}


class AgentSource(Protocol):
    """One configured place to discover agents. `discover` blocks, and raises DiscoveryError without any answer."""

    config: SourceConfig

    def discover(self) -> Snapshot:
        """Return the agents that exist now."""
        ...


class SourceType(Protocol):
    """The object that an entry point of `tunnelmgr.sources` names."""

    Config: type[SourceConfig]

    def __call__(self, config: Any) -> AgentSource:  # noqa: ANN401 - each type takes its own Config
        """Return a source of this type."""
        ...


def plugins() -> dict[str, EntryPoint]:
    """Return the source types that are installed, by name."""
    return {entry.name: entry for entry in entry_points(group="tunnelmgr.sources")}


def source_type(name: str) -> SourceType | None:
    """Return the class of a source type, None if no plug-in has that name."""
    found = plugins().get(name)
    return None if found is None else found.load()
