"""The configuration that the daemon follows now, and what it says about agents: groups, policies, forwards."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import RegistryAction, is_repository_name
from tunnelmgr.core.policy import GroupPolicy, Verdict, judge
from tunnelmgr.core.ports import WorldView
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

    def policy_of(self, agent: AgentId) -> GroupPolicy:
        """Return the policy of an agent's group; an unconfigured group may do nothing."""
        group = self.group_of(agent)
        return self.prepared.policies.get(group) or GroupPolicy.build(group, pull=())

    def explain(self, agent: AgentId, action: str, repository: str) -> Verdict:
        """Return what an agent's policy says; raises ValueError for an unknown action or an invalid repository name."""
        if not is_repository_name(repository):
            raise ValueError(f"invalid repository name {repository!r}")
        if action not in EXPLAINED:
            raise ValueError(f"unknown action {action!r}; use one of: {', '.join(EXPLAINED)}")
        return judge(RegistryAction(action), repository, self.policy_of(agent))
