"""The configuration that the daemon follows now, and what it says about agents: groups, policies, forwards."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import RegistryAction, is_repository_name
from tunnelmgr.core.policies import Explained
from tunnelmgr.core.policy import GroupPolicy, judge
from tunnelmgr.core.ports import WorldView
from tunnelmgr.core.spelling import nearest
from tunnelmgr.core.tunnel import Forward
from tunnelmgr.daemon.prepared import Prepared

EXPLAINED = (RegistryAction.PULL, RegistryAction.PUSH, RegistryAction.DELETE)
"""The actions that a policy grants or refuses on one repository."""


@dataclass(slots=True)
class ActiveConfiguration:
    """Answers from the configuration that was read last; a reload replaces `prepared`."""

    prepared: Prepared
    view: WorldView

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The forwards that every tunnel has."""
        return self.prepared.rules.forwards

    def requires_audit(self) -> bool:
        """Return whether the gate must refuse requests that cannot be audited."""
        return self.prepared.config.controller.audit_required

    def group_of(self, agent: AgentId) -> str:
        """Return the group that the configuration puts an agent into; "" for an unknown agent."""
        record = self.view.world.records.get(agent)
        return "" if record is None else self.prepared.rules.group_of(record.agent)

    def policy_of(self, agent: AgentId, forward: str) -> GroupPolicy:
        """Return the policy of an agent's group at a forward; an unconfigured group may do nothing."""
        return self.prepared.policies.of(self.group_of(agent), forward)

    def explain(self, agent: AgentId, action: str, repository: str, forward: str) -> Explained:
        """Return what an agent's policy says at a forward, by default the first one that has a policy.

        Raises ValueError for an unknown action or forward, or an invalid repository name.
        """
        if not is_repository_name(repository):
            raise ValueError(f"invalid repository name {repository!r}")
        if action not in EXPLAINED:
            raise ValueError(f"unknown action {action!r}; use one of: {', '.join(EXPLAINED)}")
        known = [each.name for each in self.forwards if each.protocol == "registry"]
        if not known:
            raise ValueError('every forward has protocol = "tcp", to which no policy applies')
        if forward and forward not in known:
            near = nearest(forward, known)
            hint = f" (did you mean {near}?)" if near else ""
            raise ValueError(f"unknown forward {forward!r}{hint}; forwards with a policy: {', '.join(known)}")
        chosen = forward or known[0]
        return Explained(chosen, judge(RegistryAction(action), repository, self.policy_of(agent, chosen)))
