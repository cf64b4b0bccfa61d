"""Which group may do what: `decide(request, policy) -> Verdict`.

- A deny wins over every grant; the order of rules does not matter.
- A push grant lets its group pull the same repository, so that it can check what it pushed.
- What no rule grants is refused. The base check and our own well-known path are always allowed.
- The catalog is for everybody, and shows to each group what that group may pull.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from tunnelmgr.core.globs import GlobSet, check_name_glob
from tunnelmgr.core.immutable_tags import ImmutableTags
from tunnelmgr.core.oci import RegistryAction, RegistryRequest, is_repository_name

EVERYTHING = "**"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allow or refuse, the rule that decided (`deny team/**`, `default`), and the sentence an agent is told."""

    allowed: bool
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """The grants of one group, compiled."""

    group: str
    pull: GlobSet
    push: GlobSet
    delete: GlobSet
    deny: GlobSet
    immutable_tags: ImmutableTags

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
    ) -> "GroupPolicy":
        """Compile patterns; raises ValueError that names the first bad one."""
        return cls(
            group=group,
            pull=_names(pull),
            push=_names(push),
            delete=_names(delete),
            deny=_names(deny),
            immutable_tags=ImmutableTags(immutable_tags),
        )


def decide(request: RegistryRequest, policy: GroupPolicy) -> Verdict:
    """Judge one request by its group's grants; whether a mount may go along is `may_mount`'s to say."""
    match request.action:
        case RegistryAction.BASE | RegistryAction.WELL_KNOWN:
            return Verdict(allowed=True, rule="always", reason="")
        case RegistryAction.CATALOG:
            return Verdict(allowed=True, rule="catalog", reason="")
        case RegistryAction.UNKNOWN:
            reason = f"tunnelmgr: {request.method} {request.path} is no endpoint of the registry API"
            return Verdict(allowed=False, rule="endpoint", reason=reason)
        case RegistryAction.PULL | RegistryAction.PUSH | RegistryAction.DELETE:
            return judge(request.action, request.repository, policy)
        case _:
            assert_never(request.action)


def judge(action: RegistryAction, repository: str, policy: GroupPolicy) -> Verdict:
    """Judge pull, push or delete of one repository."""
    if (pattern := policy.deny.find(repository)) is not None:
        return _verdict(policy, action, repository, rule=f"deny {pattern}", allowed=False)
    if (rule := _grant(action, repository, policy)) is not None:
        return _verdict(policy, action, repository, rule=rule, allowed=True)
    return _verdict(policy, action, repository, rule="default", allowed=False)


def may_list(repository: str, policy: GroupPolicy) -> bool:
    """Whether the catalog names this repository to the group: one that it may pull, by a name that requests may use."""
    return is_repository_name(repository) and judge(RegistryAction.PULL, repository, policy).allowed


def may_mount(request: RegistryRequest, policy: GroupPolicy) -> bool:
    """Whether the group may read the repository that a mount names.

    A mount that names none lets the registry search all of them (end-11, automatic content discovery): never.
    """
    return bool(request.mount_from) and judge(RegistryAction.PULL, request.mount_from, policy).allowed


def protected_tags(request: RegistryRequest, policy: GroupPolicy) -> Mapping[str, str]:
    """Return the tags that this request would write and that are written once, each with the rule that says so."""
    if request.action is not RegistryAction.PUSH:
        return {}
    rules = ((tag, policy.immutable_tags.rule(tag)) for tag in request.tags)
    return {tag: rule for tag, rule in rules if rule is not None}


def _grant(action: RegistryAction, repository: str, policy: GroupPolicy) -> str | None:
    for kind, globs in _granting(action, policy):
        if (pattern := globs.find(repository)) is not None:
            return f"{kind} {pattern}"
    return None


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


def _verdict(policy: GroupPolicy, action: RegistryAction, repository: str, *, rule: str, allowed: bool) -> Verdict:
    may = "may" if allowed else "may not"
    reason = f"tunnelmgr: group {policy.group} {may} {action} {repository}"
    return Verdict(allowed=allowed, rule=rule, reason=reason)


def _names(patterns: Iterable[str]) -> GlobSet:
    kept = tuple(patterns)
    for pattern in kept:
        check_name_glob(pattern)
    return GlobSet(kept)
