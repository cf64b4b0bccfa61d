"""The JSON of the API as pydantic models: its documentation, from which the OpenAPI document is made.

`views.py` makes the answers; a test validates each against its model, so that neither has a field that the other lacks.
Times are RFC 3339 in UTC.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tunnelmgr.core.preview import Effect
from tunnelmgr.core.registry_sharing import Sharing
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

Count = Annotated[int, Field(ge=0)]
PhaseName = Annotated[Phase, Field(strict=False)]
Time = Annotated[datetime, Field(strict=False)]
MAX_SEED_SECONDS: Final = 30 * 86400
"""Longest time that a seed may wait for its machine."""
MAX_REASON: Final = 1000
"""Characters of a reason: it is in the agent's history, in the audit log, and in every copy of them."""


class Shape(BaseModel):
    """One object of the API; it has every field."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Forward(Shape):
    """A forward, and the addresses on the agent that are held for it."""

    name: str
    listen: list[str]
    held: list[str]
    target: str
    protocol: Literal["registry", "tcp"]
    upstream: Literal["registry", "proxy"] | None
    namespace: str | None
    push_target: str | None
    writer: str | None


class Agent(Shape):
    """An agent with its evidence, its tunnel and its traffic; `message` says why it has no tunnel."""

    agent: str = Field(description="the id, such as `ec2:i-0abc…`")
    name: str
    group: str
    source: str
    address: str | None
    port: int
    present: bool = Field(description="false once it has left; it is remembered for 7 days")
    phase: PhaseName
    holder: str | None = Field(description="the member of the cluster that holds it")
    member: str | None = Field(description="the same")
    since: Time
    first_seen: Time
    trust: Annotated[Method, Field(strict=False)] | None
    evidence: str | None
    fingerprints: list[str]
    login_key: str | None
    error: str | None = Field(description="the code of the last error")
    message: str | None
    failures: Count
    retry_at: Time | None
    forwards: list[Forward]
    channels: Count
    bytes_to_agent: Count
    bytes_from_agent: Count
    probe_ms: float | None
    probed_at: Time | None


class History(Shape):
    """A step of an agent's history; `uid` is who requested it, `since` when a repeated step was first taken."""

    time: Time
    step: str
    detail: str
    uid: int | None
    count: Count
    since: Time | None


class AgentDetails(Agent):
    """An agent with its history, oldest first."""

    history: list[History]


class EventQueue(Shape):
    """Whether a source's event queue works."""

    ok: bool
    error: str | None


class Source(Shape):
    """A source and its last answer; `missing` agents stay although its listing lacked them."""

    name: str
    ok: bool
    last_success: Time | None
    error: str | None
    missing: Count
    events: EventQueue | None
    agents: Count


class MemberRegistry(Shape):
    """What a member's registry says of its own upload and of those of the others."""

    upload: Annotated[Sharing, Field(strict=False)] | None
    sees_uploads_of: dict[str, Annotated[Sharing, Field(strict=False)]]
    error: str | None


class Member(Shape):
    """A member of the cluster; `heartbeat_s` is the age of its last heartbeat."""

    name: str
    zone: str | None
    capacity: float
    version: str
    alive: bool
    draining: bool
    heartbeat_s: float
    agents: Count
    sources: list[str]
    same_rules: bool
    registry: MemberRegistry


class MemberSummary(Shape):
    """A member in short; `ok` says that it is alive and takes agents."""

    name: str
    zone: str | None
    version: str
    ok: bool
    agents: Count
    heartbeat_age_s: float


class Health(Shape):
    """Whether something works, and if not, why."""

    ok: bool
    error: str | None


class Cluster(Shape):
    """The members, and the database that they share; `member` is this one."""

    member: str
    database: Health
    members: list[Member]


class Registry(Shape):
    """The registry; `loopback_only` is null if it cannot be determined."""

    reachable: bool
    loopback_only: bool | None
    error: str | None
    checked_at: Time | None


class FastPath(Shape):
    """Whether bulk data bypasses asyncssh, and if not, why."""

    active: bool
    reason: str | None


class Cache(Shape):
    """The cache: bytes on disk, and counts since the start."""

    path: str
    size: Count
    used: Count
    blobs: Count
    hits: Count
    misses: Count
    bypassed: Count
    bytes: Count


class Limit(Shape):
    """A limit of a group: how many wait now, and since the start the waits, their seconds, and requests refused."""

    group: str
    limit: Literal["requests_per_second", "pull_rate", "push_rate", "concurrent_pulls"]
    waiting: Count
    waits: Count
    wait_s: float
    refused: Count


class AuditForward(Shape):
    """How far a collector of the audit log has got; `behind` entries are newer than the last one it confirmed."""

    name: str
    ok: bool
    error: str | None
    sequence: Count
    behind: Count
    dropped: Count
    last_success: Time | None


class Audit(Shape):
    """Whether the audit log is written, and taken by its collectors; `lost` counts entries since the start."""

    ok: bool
    error: str | None
    lost: Count
    lost_recently: bool
    forwards: list[AuditForward]


class Tracing(Shape):
    """Whether the collector takes traces, and what has become of the spans since the start."""

    ok: bool
    error: str | None
    exported: Count
    failed: Count
    dropped: Count


class Status(Shape):
    """The controller, its sources, its registry, and how many agents are in each phase."""

    controller: str
    version: str
    uptime_s: float
    draining: bool
    agents: Count
    up: Count
    quarantined: Count
    phases: dict[PhaseName, Count]
    trust: dict[Annotated[Method, Field(strict=False)], Count]
    sources: list[Source]
    cluster: Cluster | None
    members: list[MemberSummary]
    registry: Registry
    audit: Audit
    fast_path: FastPath
    state: Health
    cache: Cache | None
    limits: list[Limit]
    tracing: Tracing | None


class Transfer(Shape):
    """A request in progress; `number` is unique until a restart, `status` is null before the response."""

    number: Count
    agent: str
    group: str
    forward: str
    method: str
    action: str
    repository: str
    reference: str
    status: int | None
    bytes_to_agent: Count
    bytes_from_agent: Count
    seconds: float


class Policy(Shape):
    """What the policy says of an action, with the rule that decides."""

    agent: str
    group: str
    forward: str
    action: Literal["pull", "push", "delete"]
    repository: str
    allowed: bool
    rule: str
    reason: str


class Retry(Shape):
    """The agent is tried again now."""

    agent: str
    phase: PhaseName
    retry: Literal["now"]


class ReleaseRequest(Shape):
    """Why an agent is safe again; it is kept in the agent's history."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON)]


class Release(Shape):
    """The agent is released from quarantine."""

    agent: str
    released: Literal[True]


class SeedRequest(Shape):
    """A public host key, and for how long it may wait for its machine."""

    key: str = Field(description="`type base64`, as in a file of OpenSSH")
    seconds: Annotated[float, Field(gt=0, le=MAX_SEED_SECONDS)]


class Seed(Shape):
    """A host key that waits for its machine."""

    seed: str
    expires: Time


class PlanRequest(Shape):
    """The text of a configuration, and the name of its file for messages."""

    text: str
    file: str = ""


class ConfigChange(Shape):
    """A key of the configuration that differs; null stands for what is not there."""

    key: str
    before: Any
    after: Any


class AgentEffect(Shape):
    """What happens to an agent; `before` and `after` are its groups."""

    agent: str
    name: str
    effect: Annotated[Effect, Field(strict=False)]
    before: str | None
    after: str | None


class Plan(Shape):
    """What a reload would change; `remarks` name what takes effect at the next start."""

    changes: list[ConfigChange]
    agents: list[AgentEffect]
    remarks: list[str]


class Reload(Shape):
    """The configuration is followed; `remarks` name what takes effect at the next start."""

    reloaded: Literal[True]
    remarks: list[str]


class DrainRequest(Shape):
    """Whether the member hands its agents over, or no longer."""

    on: bool = True


class Drain(Shape):
    """Whether the member hands its agents over."""

    member: str
    draining: bool


class Rebalance(Shape):
    """How many agents are offered to other members."""

    offered: Count


class ErrorFacts(Shape):
    """What went wrong, and what to do; `problems` has every error of a configuration."""

    code: str
    message: str
    problems: list[str] = []
    file: str = ""


class Error(Shape):
    """A request that was refused or failed."""

    error: ErrorFacts
