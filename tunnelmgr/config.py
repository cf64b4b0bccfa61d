"""The configuration file: TOML in, one frozen `Config` out, or every problem at once, each with its place.

Sources are plug-ins: the entry point group `tunnelmgr.sources` maps a `type` to a class with a `Config` model
(a `SourceConfig`) and a `discover` method.
"""

import os
import re
import socket
import stat
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from tunnelmgr.core.events import Rules, Snapshot
from tunnelmgr.core.globs import check_name_glob, check_tag_glob
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.errors import ConfigError

DEFAULT_FILE = Path("/etc/tunnelmgr/tunnelmgr.toml")
DEFAULT_SOCKET = "/run/tunnelmgr/tunnelmgr.sock"

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
ModelT = TypeVar("ModelT", bound=BaseModel)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write a duration such as "15s", "2m" or "500ms"')
    return float(match[1]) * _UNITS[match[2]]


def _endpoint(value: object) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([0-9.]+)):([0-9]{1,5})", value if isinstance(value, str) else "")
    if match is None:
        raise ValueError('write a literal address and a port, such as "127.0.0.1:5000" or "[::1]:5000"')
    try:
        host = str(ip_address(match[1] or match[2]))
    except ValueError as odd:
        raise ValueError(f"{match[1] or match[2]} is no IP address") from odd
    port = int(match[3])
    if not 1 <= port <= 65535:  # noqa: PLR2004 - the range of TCP ports
        # Port 0 would ask for any free port, and a listener like that matches every channel.
        raise ValueError("the port must be from 1 to 65535")
    return Endpoint(host, port)


def _loopback(value: object) -> Endpoint:
    endpoint = _endpoint(value)
    if not ip_address(endpoint.host).is_loopback:
        raise ValueError(f"{endpoint} is not loopback; an agent must not offer the registry to its network")
    return endpoint


def _absolute(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("write an absolute path")
    return Path(value)


def _existing(value: object) -> Path:
    path = _absolute(value)
    try:
        path.stat()
    except FileNotFoundError as missing:
        raise ValueError(f"there is no file {path}") from missing
    except OSError as denied:
        raise ValueError(f"cannot look at {path}: {denied.strerror}") from denied
    return path


def _state(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"sqlite:////[^\0]+", value):
        raise ValueError('write "sqlite:////absolute/path"')
    return value


def _globs_checked(check: Callable[[str], None]) -> AfterValidator:
    """Make a validator of patterns from the core's check."""

    def checked(pattern: str) -> str:
        check(pattern)
        return pattern

    return AfterValidator(checked)


Duration = Annotated[float, BeforeValidator(_duration)]
Target = Annotated[Endpoint, BeforeValidator(_endpoint)]
Loopback = Annotated[Endpoint, BeforeValidator(_loopback)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
ExistingFile = Annotated[Path, BeforeValidator(_existing), PlainSerializer(str)]
TrustOrder = Annotated[list[Annotated[Method, Field(strict=False)]], Field(min_length=1)]
NameGlobs = list[Annotated[str, _globs_checked(check_name_glob)]]
TagGlobs = list[Annotated[str, _globs_checked(check_tag_glob)]]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A table of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class ControllerConfig(Section):
    """`[controller]`: this process."""

    name: Name = Field(default_factory=lambda: socket.gethostname().split(".")[0] or "controller")
    state: Annotated[str, BeforeValidator(_state)] = "sqlite:////var/lib/tunnelmgr/state.db"
    socket: AbsolutePath = Path(DEFAULT_SOCKET)
    metrics_public: bool = False
    metrics: Target | None = None
    audit: AbsolutePath | None = None
    drain: Annotated[Duration, Field(le=86400)] = 30.0

    @field_validator("metrics")
    @classmethod
    def _meant(cls, metrics: Endpoint | None, before: ValidationInfo) -> Endpoint | None:
        if metrics and not ip_address(metrics.host).is_loopback and not before.data.get("metrics_public"):
            raise ValueError(f"{metrics} is not loopback; add metrics_public = true if that is meant")
        return metrics


class SshConfig(Section):
    """`[ssh]`: how agents are dialled."""

    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]{0,31}$")] = "tunnel"
    key: ExistingFile = Field(default=Path("/etc/tunnelmgr/id_ed25519"), validate_default=True)
    connect_timeout: Annotated[Duration, Field(gt=0, le=120)] = 10.0
    probe_interval: Annotated[Duration, Field(ge=0.1, le=3600)] = 15.0
    max_channels: Annotated[int, Field(ge=1, le=4096)] = 128


class ForwardConfig(Section):
    """`[[forward]]`: what listens on each agent, and where it leads here."""

    name: Name
    listen: Annotated[list[Loopback], Field(min_length=1)]
    target: Target
    protocol: Literal["registry", "tcp"] = "registry"

    def forward(self) -> Forward:
        """Return the core's form."""
        return Forward(self.name, tuple(self.listen), self.target, self.protocol)


class GroupConfig(Section):
    """`[[group]]`: what agents of a group may do."""

    name: Name
    pull: NameGlobs | None = None
    push: NameGlobs = []
    delete: NameGlobs = []
    deny: NameGlobs = []
    immutable_tags: TagGlobs = []
    minimum_trust: Method = Field(default=Method.TOFU, strict=False)

    def policy(self) -> GroupPolicy:
        """Return the compiled policy; a group without any grant may pull everything."""
        silent = self.pull is None and not self.push and not self.delete
        pull = ["**"] if silent else self.pull or []
        return GroupPolicy.build(
            self.name,
            pull=pull,
            push=self.push,
            delete=self.delete,
            deny=self.deny,
            immutable_tags=self.immutable_tags,
        )


class SourceConfig(Section):
    """What every `[[source]]` has; a source type adds its own keys."""

    name: Name
    type: str
    group: Name = "default"
    trust: TrustOrder
    poll: Annotated[Duration, Field(ge=0.1, le=86400)] = 15.0

    def groups(self) -> set[str]:
        """Return the groups that agents of this source may belong to."""
        return {self.group}


class Source(Protocol):
    """One configured place to discover agents. `discover` blocks, and raises DiscoveryError without any answer."""

    config: SourceConfig

    def discover(self) -> Snapshot:
        """Return the agents there are now."""
        ...


class SourceType(Protocol):
    """What an entry point of `tunnelmgr.sources` names."""

    Config: type[SourceConfig]

    def __call__(self, config: Any) -> Source:  # noqa: ANN401 - each type takes its own Config
        """Return a source of this type."""
        ...


class Config(Section):
    """The whole file."""

    controller: ControllerConfig = ControllerConfig()
    ssh: SshConfig
    forward: list[ForwardConfig] = []
    group: list[GroupConfig] = []
    source: list[SourceConfig] = []

    def forwards(self) -> tuple[Forward, ...]:
        """Return the forwards of every agent; without any in the file, the registry on port 5000."""
        if self.forward:
            return tuple(entry.forward() for entry in self.forward)
        listen = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
        return (Forward("registry", listen, Endpoint("127.0.0.1", 5000)),)

    def policies(self) -> dict[str, GroupPolicy]:
        """Return each group's policy; a group that is only mentioned gets the default one."""
        named = {entry.name: entry.policy() for entry in self.group}
        mentioned = {group for source in self.source for group in source.groups()}
        return {**{group: GroupConfig(name=group).policy() for group in mentioned}, **named}

    def rules(self) -> Rules:
        """Return what the core decides by."""
        return Rules(
            forwards=self.forwards(),
            trust={source.name: tuple(source.trust) for source in self.source},
            minimum={group.name: group.minimum_trust for group in self.group},
        )


def config_file(option: Path | None) -> Path:
    """Return the file to read: the option, else `TUNNELMGR_CONFIG`, else the one in /etc."""
    return option or Path(os.environ.get("TUNNELMGR_CONFIG") or DEFAULT_FILE)


def load(file: Path) -> Config:
    """Read and check the file.

    Raises ConfigError with every problem found, each with its place, such as `source[1].poll: …`.
    """
    raw = _parse(file)
    problems: list[str] = []
    tables = enumerate(_tables(raw, "source", problems))
    sources = {at: _source(entry, f"source[{at}]", problems) for at, entry in tables}
    whole = _validated(partial(Config.model_validate, {"ssh": {}, **raw, "source": []}), "", problems)
    found = {at: source for at, source in sources.items() if source is not None}
    if whole is not None:
        _cross_check(whole, found, problems)
    if problems or whole is None:
        raise ConfigError(sorted(set(problems), key=problems.index), file=str(file))
    return whole.model_copy(update={"source": list(found.values())})


def source_type(name: str) -> SourceType | None:
    """Return the class behind a source type, None where no plug-in has that name."""
    found = _plugins().get(name)
    return None if found is None else found.load()


def examine_key_file(path: Path) -> str | None:  # noqa: PLR0911 - one return a finding
    """Return what is wrong with a private key file, None if it is safe to use.

    As ssh(1) does, a key that others can read is refused; so are symlinks and foreign owners.
    """
    try:
        facts = path.lstat()
    except OSError as denied:
        return f"cannot read {path}: {denied.strerror}"
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a symlink; name the file itself"
    if not stat.S_ISREG(facts.st_mode):
        return f"{path} is not a file"
    if facts.st_uid not in {os.geteuid(), 0}:
        return f"{path} belongs to uid {facts.st_uid}; `chown` it to the daemon's user"
    if facts.st_mode & 0o077:
        return f"{path} can be read by others (mode {facts.st_mode & 0o777:04o}); run `chmod 600 {path}`"
    if not os.access(path, os.R_OK):
        return f"cannot read {path}: permission denied for uid {os.geteuid()}"
    return None


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise ConfigError(["no such file; `tunnelmgr init` writes one"], file=str(file)) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError([f"cannot be read: {unreadable}"], file=str(file)) from unreadable
    except (ValueError, RecursionError) as bad:  # a bare ValueError is a number of thousands of digits
        raise ConfigError([f"is not TOML: {bad}"], file=str(file)) from bad


def _tables(raw: dict[str, Any], key: str, problems: list[str]) -> list[dict[str, Any]]:
    entries = raw.get(key, [])
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    problems.append(f"{key}: write it as [[{key}]] tables")
    return []


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="tunnelmgr.sources")}


def _source(entry: dict[str, Any], place: str, problems: list[str]) -> SourceConfig | None:
    kind = entry.get("type")
    try:
        known = source_type(kind) if isinstance(kind, str) else None
    except (ImportError, AttributeError) as broken:
        problems.append(f"{place}.type: the plug-in {kind} cannot be loaded: {broken}")
        return None
    if known is None:
        problems.append(f"{place}.type: {kind!r} is none of {', '.join(sorted(_plugins()))}")
        return None
    return _validated(partial(known.Config.model_validate, entry), place, problems)


def _validated(validate: Callable[[], ModelT], place: str, problems: list[str]) -> ModelT | None:
    try:
        return validate()
    except ValidationError as bad:
        problems.extend(_problem(error, place) for error in bad.errors())
        return None


def _problem(error: ErrorDetails, place: str) -> str:
    for part in error["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    elif error["type"] == "missing":
        message = "missing"
    elif error["type"] in {"string_pattern_mismatch", "enum", "literal_error", "greater_than", "less_than_equal"}:
        message = f"{message[0].lower()}{message[1:]}, not {error['input']!r}"
    return f"{place}: {message}"


def _cross_check(config: Config, sources: dict[int, SourceConfig], problems: list[str]) -> None:
    """Find what only shows when all tables are seen together; `sources` are those that are whole, by their place."""
    _unique("group", {at: group.name for at, group in enumerate(config.group)}, problems)
    _unique("source", {at: source.name for at, source in sources.items()}, problems)
    _unique("forward", {at: forward.name for at, forward in enumerate(config.forward)}, problems)
    taken: dict[Endpoint, str] = {}
    for at, forward in enumerate(config.forward):
        for endpoint in forward.listen:
            if endpoint in taken:
                problems.append(f"forward[{at}].listen: {endpoint} is taken by {taken[endpoint]}")
            taken.setdefault(endpoint, f"forward[{at}]")
    minimum = config.rules().minimum
    for at, source in sources.items():
        for group in sorted(source.groups()):
            least = minimum.get(group, Method.TOFU)
            if not any(method.reaches(least) for method in source.trust):
                problems.append(f"source[{at}].trust: none of these reaches group {group}'s minimum_trust, {least}")


def _unique(table: str, names: dict[int, str], problems: list[str]) -> None:
    first: dict[str, int] = {}
    for at, name in names.items():
        if first.setdefault(name, at) != at:
            problems.append(f"{table}[{at}].name: {name} is taken by {table}[{first[name]}]")
