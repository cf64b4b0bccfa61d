"""What a member has for the others: what waits for the next turn, and what they have been told."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster_messages import Discovered, Outgoing
from tunnelmgr.core.events import AgentEnded, AgentsDiscovered, Event
from tunnelmgr.core.lease_requests import new_statuses
from tunnelmgr.core.ownership import LeaseChange, Member
from tunnelmgr.core.world import World


@dataclass(slots=True)
class Outbox:
    """Collects what is to be sent; `acting` are the requests of others that the controller has received."""

    acting: set[int] = field(default_factory=set)
    _discovered: list[Discovered] = field(default_factory=list)
    _requests: list[tuple[AgentId, Event]] = field(default_factory=list)
    _drains: dict[str, bool] = field(default_factory=dict)
    _told: World = field(default_factory=World)

    def discover(self, discovered: Discovered) -> None:
        """Send what a source said; it replaces what no longer matters, so that a long wait does not fill the memory."""
        replaced = object if discovered.whole else type(discovered.event)
        self._discovered = [one for one in self._discovered if not _is_obsolete(one, discovered.source, replaced)]
        self._discovered.append(discovered)

    def request(self, agent: AgentId, event: Event) -> None:
        """Send an event to the member that holds an agent."""
        self._requests.append((agent, event))

    def drain(self, member: str, *, on: bool) -> None:
        """Send an operator's wish that a member drains, or no longer does."""
        self._drains[member] = on

    def take(self, me: Member, world: World, changes: Sequence[LeaseChange], *, stored: bool) -> Outgoing:
        """Return what is to be sent; `stored` says that the database has everything that this member is to write."""
        outgoing = Outgoing(
            draining=me.draining,
            rules=me.rules,
            changes=changes,
            statuses=new_statuses(world, self._told),
            discovered=self._discovered,
            requests=self._requests,
            drains=self._drains,
            # A request that was acted on is removed once its effect is stored.
            done=tuple(self.acting) if stored else (),
        )
        self._discovered, self._requests, self._drains = [], [], {}
        return outgoing

    def sent(self, outgoing: Outgoing, world: World) -> None:
        """Note that the others know this, and the states of this member's agents in `world`."""
        self.acting -= set(outgoing.done)
        self._told = world

    def put_back(self, outgoing: Outgoing) -> None:
        """Keep what could not be sent for the next turn, in order; by then the others may have forgotten all states."""
        self._discovered[:0] = outgoing.discovered
        self._requests[:0] = outgoing.requests
        self._drains = {**outgoing.drains, **self._drains}
        self._told = World()


def _is_obsolete(one: Discovered, source: str, replaced: type) -> bool:
    """Return whether a later event of a source replaces one; no event replaces the report that an agent has ended."""
    ends = isinstance(one.event, AgentEnded) or (isinstance(one.event, AgentsDiscovered) and one.event.snapshot.gone)
    return one.source == source and isinstance(one.event, replaced) and not ends
