"""Agents written in the configuration file."""

from typing import Annotated

from pydantic import Field, field_validator

from tunnelmgr.config import Name, Section, SourceConfig, TrustOrder
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.host_key import fingerprint, parse_key
from tunnelmgr.core.rules import Grouping
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method


class StaticAgent(Section):
    """`[[source.agent]]`: one machine."""

    name: Name
    address: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9.:_-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    group: Name | None = None
    host_key: str | None = None

    @field_validator("host_key")
    @classmethod
    def _well_formed(cls, value: str | None) -> str | None:
        """Return the key as `type base64`, from a line as in ssh_host_ed25519_key.pub."""
        if value is None:
            return None
        try:
            return parse_key(value)
        except ValueError as invalid:
            hint = 'write the public host key as "ssh-ed25519 AAAA…" (/etc/ssh/ssh_host_ed25519_key.pub)'
            raise ValueError(f"{invalid}; {hint}") from invalid


class StaticConfig(SourceConfig):
    """`type = "static"`."""

    trust: TrustOrder = Field(default=[Method.PINNED])
    agent: list[StaticAgent] = Field(default=[])

    @field_validator("agent")
    @classmethod
    def _names_differ(cls, agents: list[StaticAgent]) -> list[StaticAgent]:
        names = [agent.name for agent in agents]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two agents are named {', '.join(doubled)}")
        return agents

    def groups(self) -> set[str]:
        """Return the groups of the agents, and the source's own."""
        return {agent.group or self.group for agent in self.agent} or {self.group}

    def grouping(self) -> Grouping:
        """Return how agents are assigned to groups: by their own entry, else by the source."""
        return Grouping(self.group, {agent_id(agent.name): agent.group for agent in self.agent if agent.group})

    def pinned_keys(self) -> dict[AgentId, str]:
        """Return the host keys in the configuration, by agent."""
        return {agent_id(agent.name): agent.host_key for agent in self.agent if agent.host_key}


class StaticSource:
    """Returns the agents in the configuration; any other agent is gone."""

    Config = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        self.config = config
        self._snapshot = Snapshot(frozenset(self._agent(entry) for entry in config.agent), absence_is_proof=True)

    def discover(self) -> Snapshot:
        """Return the agents in the configuration; a reload makes a new source."""
        return self._snapshot

    def _agent(self, entry: StaticAgent) -> Agent:
        return Agent(
            id=agent_id(entry.name),
            # Another key in the configuration means another machine under the same name.
            incarnation=fingerprint(entry.host_key) if entry.host_key else "",
            source=self.config.name,
            group=entry.group or self.config.group,
            name=entry.name,
            addresses=(entry.address,),
            port=entry.port,
        )


def agent_id(name: str) -> AgentId:
    """Return the id of a static agent."""
    return AgentId(f"static:{name}")
