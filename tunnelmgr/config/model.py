"""The tables of the configuration file."""

import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tunnelmgr.config.api import ApiConfig
from tunnelmgr.config.audit_forward import AuditForwardConfig
from tunnelmgr.config.groups import GroupConfig
from tunnelmgr.config.sources import SourceConfig
from tunnelmgr.config.state_url import state_url
from tunnelmgr.config.tracing import TracingConfig
from tunnelmgr.config.values import (
    AbsolutePath,
    Duration,
    ExistingFile,
    HostName,
    Loopback,
    Name,
    PublicKeyFileRead,
    RevocationFileRead,
    SecretPath,
    Section,
    Size,
    Target,
)
from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.policies import Policies
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.tunnel import Endpoint, Forward

DEFAULT_FILE = Path("/etc/tunnelmgr/tunnelmgr.toml")
DEFAULT_KEY = Path("/etc/tunnelmgr/id_ed25519")
DEFAULT_CACHE = Path("/var/cache/tunnelmgr")
MIN_CACHE: Final = 2**30
"""Bytes; a smaller cache would not hold one usual image."""
DEFAULT_SOCKET = "/run/tunnelmgr/tunnelmgr.sock"
Cipher = Literal[
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
]
"""The ciphers that can be configured; weaker ones are not supported."""
CIPHERS: Final[tuple[Cipher, ...]] = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
"""The ciphers that are offered unless others are configured, best first."""


class ControllerConfig(Section):
    """`[controller]`: this process."""

    name: Name = Field(default_factory=lambda: socket.gethostname().split(".")[0] or "controller")
    state: Annotated[str, BeforeValidator(state_url)] = "sqlite:////var/lib/tunnelmgr/state.db"
    password_file: SecretPath | None = None
    zone: Annotated[str, Field(max_length=64)] = ""
    capacity: Annotated[float, Field(gt=0, le=1000)] = 1.0
    isolation_limit: Duration = 0.0
    socket: AbsolutePath = Path(DEFAULT_SOCKET)
    metrics_public: bool = False
    metrics: Target | None = None
    metrics_names: list[HostName] = []
    metrics_page: bool = True
    audit: AbsolutePath | None = None
    audit_required: bool = False
    audit_key: SecretPath | None = None
    audit_seal_interval: Annotated[Duration, Field(ge=1, le=86400)] = 60.0
    drain: Annotated[Duration, Field(le=86400)] = 30.0

    @field_validator("metrics")
    @classmethod
    def _public_only_if_confirmed(cls, metrics: Endpoint | None, before: ValidationInfo) -> Endpoint | None:
        if metrics and not is_loopback(metrics.host) and not before.data.get("metrics_public"):
            raise ValueError(f"{metrics} is not loopback; add metrics_public = true if that is intended")
        return metrics

    @field_validator("audit_key")
    @classmethod
    def _only_with_a_file(cls, key: Path | None, before: ValidationInfo) -> Path | None:
        if key and not before.data.get("audit"):
            raise ValueError("without controller.audit there is no file to seal; set it too")
        return key


class SshConfig(Section):
    """`[ssh]`: the connections to agents."""

    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]{0,31}$")] = "tunnel"
    key: SecretPath | None = None
    certificate: ExistingFile | None = None
    next_key: SecretPath | None = None
    agent: AbsolutePath | None = None
    connect_timeout: Annotated[Duration, Field(gt=0, le=120)] = 10.0
    probe_interval: Annotated[Duration, Field(ge=0.1, le=3600)] = 15.0
    max_channels: Annotated[int, Field(ge=1, le=4096)] = 128
    ciphers: Annotated[list[Cipher], Field(min_length=1)] = list(CIPHERS)

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, table: object) -> object:
        """Use the key that `init` writes if neither a key nor an ssh-agent is configured."""
        if isinstance(table, dict) and "key" not in table and "agent" not in table:
            return {**table, "key": str(DEFAULT_KEY)}
        return table


class AuthorityConfig(Section):
    """`[[authority]]`: a trusted certificate authority, for sources with `authority` in their trust.

    Its files are read once, with the configuration, so that the contents that were checked are the ones used.
    """

    name: Name
    file: PublicKeyFileRead
    revoked: RevocationFileRead | None = None
    max_validity: Annotated[Duration, Field(gt=0, le=366 * 86400)] = 86400.0

    @property
    def key(self) -> str:
        """The public key as `type base64`."""
        return self.file.key

    @property
    def revocations(self) -> frozenset[str]:
        """What the authority has revoked: fingerprints, and `serial:N`."""
        return frozenset() if self.revoked is None else self.revoked.entries


class ForwardConfig(Section):
    """`[[forward]]`: the listeners on each agent, and their target on this side."""

    name: Name
    listen: Annotated[list[Loopback], Field(min_length=1)]
    target: Target
    protocol: Literal["registry", "tcp"] = "registry"
    upstream: Literal["registry", "proxy"] = "registry"
    namespace: Annotated[str, Field(pattern=r"^(?:[a-z0-9][a-z0-9.-]{0,252}(?::[0-9]{1,5})?)?$")] = ""
    push_target: Target | None = None
    writer: Annotated[str, Field(max_length=200)] = ""

    @field_validator("upstream", "namespace")
    @classmethod
    def _only_for_a_cache(cls, value: str, before: ValidationInfo) -> str:
        if value == "proxy" and before.data.get("protocol") == "tcp":
            raise ValueError('only a forward with protocol = "registry" leads to a registry')
        if before.field_name == "namespace" and value and before.data.get("upstream") == "registry":
            raise ValueError('only a pull-through cache has images of another registry; add upstream = "proxy"')
        return value

    @field_validator("push_target", "writer")
    @classmethod
    def _only_where_pushes_are_refused(
        cls, value: Endpoint | str | None, before: ValidationInfo
    ) -> Endpoint | str | None:
        if value and before.data.get("protocol") == "tcp":
            raise ValueError('only a forward with protocol = "registry" can tell pushes from pulls')
        if value and value == before.data.get("target"):
            raise ValueError("this is the target itself; leave it out, or name the registry that takes pushes")
        if isinstance(value, Endpoint) and before.data.get("upstream") == "proxy":
            raise ValueError("what is pushed there cannot be pulled from a pull-through cache; leave it out")
        if value and before.data.get("push_target"):
            raise ValueError("pushes go to push_target, so none is refused; leave one of the two out")
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise ValueError("write printable ASCII characters on one line")
        return value

    def forward(self) -> Forward:
        """Return the forward as the core has it."""
        return Forward(
            self.name,
            tuple(self.listen),
            self.target,
            self.protocol,
            self.push_target,
            self.writer,
            self.upstream,
            self.namespace,
        )


class CacheConfig(Section):
    """`[cache]`: blobs that agents pull, kept on this machine; sizes in bytes."""

    path: AbsolutePath = DEFAULT_CACHE
    size: Size = 20 * 2**30
    min_free: Size = 5 * 2**30

    @field_validator("size")
    @classmethod
    def _holds_an_image(cls, size: int) -> int:
        if size < MIN_CACHE:
            raise ValueError('write at least "1GiB": a smaller cache would not hold one usual image')
        return size


class Config(Section):
    """The configuration file."""

    controller: ControllerConfig = ControllerConfig()
    ssh: SshConfig
    cache: CacheConfig | None = None
    forward: list[ForwardConfig] = []
    group: list[GroupConfig] = []
    authority: list[AuthorityConfig] = []
    audit_forward: list[AuditForwardConfig] = []
    api: ApiConfig | None = None
    tracing: TracingConfig | None = None
    source: list[SourceConfig] = []

    def forwards(self) -> tuple[Forward, ...]:
        """Return the forwards of every agent; if the file has none, the registry on port 5000."""
        if self.forward:
            return tuple(entry.forward() for entry in self.forward)
        listen = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
        return (Forward("registry", listen, Endpoint("127.0.0.1", 5000)),)

    def policies(self) -> Policies:
        """Return the policy of each group at each forward; a group without a table of its own has the default one."""
        mentioned = {group for source in self.source for group in source.groups()}
        named = {entry.name: entry for entry in self.group}
        groups = {group: GroupConfig(name=group) for group in mentioned} | named
        forwards = self.forwards()
        return Policies(
            {
                (name, forward.name): group.policy_at(forward, forwards)
                for name, group in groups.items()
                for forward in forwards
                if forward.protocol == "registry"
            }
        )

    def authorities_of(self, source: SourceConfig) -> list[AuthorityConfig]:
        """Return the authorities that a source trusts: those that it names, or all."""
        return [entry for entry in self.authority if source.authorities is None or entry.name in source.authorities]

    def rules(self) -> Rules:
        """Return the rules that the core follows."""
        return Rules(
            forwards=self.forwards(),
            trust={source.name: tuple(source.trust) for source in self.source},
            minimum={group.name: group.minimum_trust for group in self.group},
            restricted=frozenset(group.name for group in self.group if group.require_restricted_key),
            groups={source.name: source.grouping() for source in self.source},
            authorities={
                source.name: frozenset(
                    f"{entry.key} {sorted(entry.revocations)}" for entry in self.authorities_of(source)
                )
                for source in self.source
            },
        )
