"""`[[group]]`: what the agents of a group may do, and `[[group.forward]]`: what they may do through one forward."""

from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from tunnelmgr.config.values import Name, NameGlobs, Section, Size, SizeOrNone, TagGlobs
from tunnelmgr.core.group_limits import UNLIMITED, GroupLimits
from tunnelmgr.core.policy import EVERYTHING, GroupPolicy, PullThrough
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Forward


class RulesConfig(Section):
    """The rules that a group has, for all forwards or for one."""

    name: Name
    pull: NameGlobs | None = None
    push: NameGlobs = []
    delete: NameGlobs = []
    deny: NameGlobs = []
    immutable_tags: TagGlobs = []

    @property
    def has_grants(self) -> bool:
        """Whether the table says what may be pulled, pushed or deleted; `pull = []` grants nothing."""
        return self.pull is not None or bool(self.push or self.delete)


class GroupForwardConfig(RulesConfig):
    """`[[group.forward]]`: grants in place of the group's, and restrictions in addition to them, at one forward."""

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if not (self.has_grants or self.deny or self.immutable_tags):
            raise ValueError("this table has no rules; write pull = [] to grant nothing, or leave the table out")
        return self


class GroupLimitsConfig(Section):
    """`[group.limits]`: what the agents of a group may use together; without a key, there is no such limit."""

    requests_per_second: float | None = Field(default=None, gt=0, le=1_000_000)
    pull_rate: Size | None = Field(default=None, gt=0)
    push_rate: Size | None = Field(default=None, gt=0)
    concurrent_pulls: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_limits(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("this table has no limits; leave it out")
        return self


class GroupConfig(RulesConfig):
    """`[[group]]`: what the agents of a group may do."""

    minimum_trust: Method = Field(default=Method.TOFU, strict=False)
    require_restricted_key: bool = False
    forward: list[GroupForwardConfig] = []
    limits: GroupLimitsConfig | None = None
    requests_per_second: float = Field(default=0.0, ge=0, le=1_000_000)
    bytes_per_second: SizeOrNone = 0

    def group_limits(self) -> GroupLimits:
        """Return the limits of the table `limits`; what it leaves out is as the two short forms say."""
        table = self.limits or GroupLimitsConfig.model_construct()
        octets = self.bytes_per_second or None
        found = GroupLimits(
            table.requests_per_second or self.requests_per_second or None,
            table.pull_rate or octets,
            table.push_rate or octets,
            table.concurrent_pulls,
        )
        return UNLIMITED if found == UNLIMITED else found

    def policy_at(self, forward: Forward, forwards: Iterable[Forward]) -> GroupPolicy:
        """Return the compiled policy at one of the forwards; a group without any grant may pull everything."""
        own = next((table for table in self.forward if table.name == forward.name), None)
        grants: RulesConfig = own if own is not None and own.has_grants else self
        return GroupPolicy.build(
            self.name,
            pull=grants.pull or [] if grants.has_grants else [EVERYTHING],
            push=grants.push,
            delete=grants.delete,
            deny=self.deny + (own.deny if own else []),
            immutable_tags=self.immutable_tags + (own.immutable_tags if own else []),
            forward="" if grants is self else forward.name,
            pull_through=_pull_through(forward, forwards),
            limits=self.group_limits(),
        )


def _pull_through(forward: Forward, forwards: Iterable[Forward]) -> PullThrough | None:
    """Return the cache that a forward leads to; without a `writer`, pushes belong to the first forward that takes them.

    None if the forward leads to a registry that stores what is pushed.
    """
    if forward.upstream == "registry":
        return None
    others = (other for other in forwards if other.protocol == "registry" and other.upstream == "registry")
    first = next((_as_in_image_names(other.listen[0]) for other in others), "")
    return PullThrough(forward.name, forward.writer or first, forward.namespace)


def _as_in_image_names(endpoint: Endpoint) -> str:
    """Return an address on the agent as users write it in the names of images."""
    return f"localhost:{endpoint.port}" if endpoint.host in {"127.0.0.1", "::1"} else str(endpoint)
