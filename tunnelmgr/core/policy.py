"""What a group may do through a forward: `decide(request, policy) -> Verdict`.

- A deny wins over every grant; the order of rules does not matter.
- A push grant includes pull of the same repository, so that a client can check what it pushed.
- A request that no rule grants is refused. The base check and `/.well-known/tunnelmgr` are always allowed.
- Every group may list the catalog, which shows it the repositories that it may pull.
- A pull-through cache takes no push and no delete, regardless of the grants. If it is known of which registry it is a
  cache, it serves no image that a client expects of another one: `docker.io/team/app` is not `quay.io/team/app`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from tunnelmgr.core.globs import GlobSet, check_name_glob
from tunnelmgr.core.group_limits import UNLIMITED, GroupLimits
from tunnelmgr.core.immutable_tags import ImmutableTags
from tunnelmgr.core.oci import RegistryAction, RegistryRequest, is_repository_name

EVERYTHING = "**"
DEFAULT = "default"
"""The rule that refuses what no other rule grants."""
PULL_THROUGH = "upstream proxy"
"""The rule that refuses pushes and deletes at a pull-through cache."""
WRITES = frozenset({RegistryAction.PUSH, RegistryAction.DELETE})
"""The actions that change what a registry stores."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed or refused, the rule that decided (`deny team/**`, `default`), and the sentence that the agent gets."""

    allowed: bool
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class PullThrough:
    """A forward that leads to a pull-through cache; `writer` says where to push, `namespace` of what it is a cache."""

    forward: str
    writer: str = ""
    namespace: str = ""

    def refuse_write(self, action: RegistryAction, repository: str) -> Verdict:
        """Return the refusal of a push or a delete."""
        instead = f"use {self.writer} for that" if self.writer else "use the registry that it is a cache of for that"
        reason = (
            f"forward {self.forward} leads to a pull-through cache, which takes no {action} of {repository}; {instead}"
        )
        return Verdict(allowed=False, rule=PULL_THROUGH, reason=f"tunnelmgr: {reason}")

    def refuse_namespace(self, namespace: str, repository: str) -> Verdict | None:
        """Return the refusal if a client expects an image of another registry, None if it may have this one."""
        if not self.namespace or namespace in {"", self.namespace}:
            return None
        expected = f"forward {self.forward} has images of {self.namespace}, not {namespace}/{repository}"
        reason = f"tunnelmgr: {expected}; configure it as a mirror of {self.namespace} only"
        return Verdict(allowed=False, rule=f"namespace {self.namespace}", reason=reason)


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """The compiled rules of one group at one forward; `pull_through` is None at a registry that stores what is pushed.

    `forward` is the name of a forward at which the group has grants of its own, otherwise empty.
    """

    group: str
    pull: GlobSet
    push: GlobSet
    delete: GlobSet
    deny: GlobSet
    immutable_tags: ImmutableTags
    forward: str = ""
    pull_through: PullThrough | None = None
    limits: GroupLimits = UNLIMITED

    @classmethod
    def build(  # noqa: PLR0913 (one argument for each key of the configuration)
        cls,
        group: str,
        *,
        pull: Iterable[str] = (EVERYTHING,),
        push: Iterable[str] = (),
        delete: Iterable[str] = (),
        deny: Iterable[str] = (),
        immutable_tags: Iterable[str] = (),
        forward: str = "",
        pull_through: PullThrough | None = None,
        limits: GroupLimits = UNLIMITED,
    ) -> "GroupPolicy":
        """Compile the patterns; raises ValueError with the first invalid one."""
        return cls(
            group=group,
            pull=_names(pull),
            push=_names(push),
            delete=_names(delete),
            deny=_names(deny),
            immutable_tags=ImmutableTags(immutable_tags),
            forward=forward,
            pull_through=pull_through,
            limits=limits,
        )


def decide(request: RegistryRequest, policy: GroupPolicy) -> Verdict:
    """Decide about one request by its group's rules; see `may_mount` for the mount in it."""
    match request.action:
        case RegistryAction.BASE | RegistryAction.WELL_KNOWN:
            return Verdict(allowed=True, rule="always", reason="")
        case RegistryAction.CATALOG:
            return Verdict(allowed=True, rule="catalog", reason="")
        case RegistryAction.UNKNOWN:
            reason = f"tunnelmgr: {request.method} {request.path} is not an endpoint of the registry API"
            return Verdict(allowed=False, rule="endpoint", reason=reason)
        case RegistryAction.PULL | RegistryAction.PUSH | RegistryAction.DELETE:
            verdict = judge(request.action, request.repository, policy)
            if verdict.allowed and policy.pull_through is not None:
                return policy.pull_through.refuse_namespace(request.namespace, request.repository) or verdict
            return verdict
        case _:
            assert_never(request.action)


def judge(action: RegistryAction, repository: str, policy: GroupPolicy) -> Verdict:
    """Decide about a pull, push or delete of one repository."""
    if policy.pull_through is not None and action in WRITES:
        return policy.pull_through.refuse_write(action, repository)
    allowed, rule = _find_rule(action, repository, policy)
    if allowed:
        return Verdict(allowed=True, rule=rule, reason=f"tunnelmgr: group {policy.group} may {action} {repository}")
    here = f" at forward {policy.forward}" if policy.forward else ""
    why = f"no rule grants it{here} (default)" if rule == DEFAULT else f"forbidden by the rule {rule}"
    reason = f"tunnelmgr: group {policy.group} may not {action} {repository}: {why}; ask the registry's administrator"
    return Verdict(allowed=False, rule=rule, reason=reason)


def may_list(repository: str, policy: GroupPolicy) -> bool:
    """Whether the catalog shows this repository to the group: it may pull it, and its name is valid in requests."""
    return is_repository_name(repository) and _find_rule(RegistryAction.PULL, repository, policy)[0]


def may_mount(request: RegistryRequest, policy: GroupPolicy) -> bool:
    """Whether the group may pull from the source repository of a mount.

    A mount without a source would let the registry search all repositories (end-11, automatic content discovery), so it
    is never allowed.
    """
    return bool(request.mount_from) and _find_rule(RegistryAction.PULL, request.mount_from, policy)[0]


def protected_tags(request: RegistryRequest, policy: GroupPolicy) -> Mapping[str, str]:
    """Return the protected tags that this request would write, each with the rule that protects it."""
    if request.action is not RegistryAction.PUSH:
        return {}
    rules = ((tag, policy.immutable_tags.rule(tag)) for tag in request.tags)
    return {tag: rule for tag, rule in rules if rule is not None}


def _find_rule(action: RegistryAction, repository: str, policy: GroupPolicy) -> tuple[bool, str]:
    """Return whether an action is allowed, and the rule that decides."""
    if (pattern := policy.deny.find(repository)) is not None:
        return False, f"deny {pattern}"
    for kind, globs in _granting(action, policy):
        if (pattern := globs.find(repository)) is not None:
            return True, f"{kind} {pattern}"
    return False, DEFAULT


def _granting(action: RegistryAction, policy: GroupPolicy) -> tuple[tuple[str, GlobSet], ...]:
    match action:
        case RegistryAction.PULL:
            return ("pull", policy.pull), ("push", policy.push)
        case RegistryAction.PUSH:
            return (("push", policy.push),)
        case RegistryAction.DELETE:
            return (("delete", policy.delete),)
        case _:
            return ()


def _names(patterns: Iterable[str]) -> GlobSet:
    kept = tuple(patterns)
    for pattern in kept:
        check_name_glob(pattern)
    return GlobSet(kept)
