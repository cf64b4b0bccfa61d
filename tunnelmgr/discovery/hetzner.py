"""Servers of Hetzner Cloud as agents, one project a source.

Rules:
- The id names the server, which has a name and addresses that another one may get later; ids are never reused.
- `running` and `starting` servers are there: one that starts has its address already and is soon up. So are
  `migrating` and `unknown` ones, which say nothing of an end. `initializing` is not there yet. `stopping`, `off` and
  `deleting` are the end. `rebuilding` is there, but what follows is another machine.
- Pages are asked for one after the other while servers come and go, so a listing counts as whole only if each page
  gives the same total and as many servers were seen. Else it is made again, and at last reported as not whole.
- A server that a whole listing lacks is asked for by its id. That tells three things apart: it is gone (404), it has
  other labels, or the listing had a hole that the totals did not show. Only Hetzner evaluates the label selector, so
  one with the labels with which it was listed is known to match; of others nothing is known.

docs.hetzner.cloud: "Servers", "Pagination", "Label Selector", "Rate Limiting".
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Annotated, Literal

import structlog
from pydantic import AfterValidator, Field

from tunnelmgr.config import ExistingFile, Name, SourceConfig, TrustOrder
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.hetzner_api import ENDPOINT, TIMEOUT, HetznerApi, Server, secure_endpoint
from tunnelmgr.discovery.hetzner_request_budget import RequestBudget
from tunnelmgr.errors import DiscoveryError

log = structlog.get_logger(__name__)

LISTINGS = 3
"""How often servers are listed in one poll where they come and go meanwhile."""
LOOK_UPS = 50
"""How many missing servers are asked for in one poll; it leaves most of the budget to others."""
ENDED = frozenset({"stopping", "off", "deleting"})
NOT_YET = frozenset({"initializing"})


class HetznerConfig(SourceConfig):
    """`type = "hetzner"`."""

    trust: TrustOrder = Field(default=[Method.SEEDED])
    project: Name = Field(default_factory=lambda known: known.get("name", ""))
    token_file: ExistingFile
    label_selector: Annotated[str, Field(max_length=1000)] = ""
    address: Literal["private", "public"] = "public"
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    endpoint_url: Annotated[str, AfterValidator(secure_endpoint)] = ENDPOINT


@dataclass(slots=True)
class _Listing:
    """What was seen of the servers; it is whole unless there is a failure."""

    servers: dict[int, Server] = field(default_factory=dict)
    failure: str | None = None


class HetznerSource:
    """Asks for the servers of one project that match the label selector."""

    Config = HetznerConfig

    def __init__(
        self,
        config: HetznerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        timeout: tuple[float, float] = TIMEOUT,
    ) -> None:
        self.config = config
        self._budget = RequestBudget(clock)
        self._api = HetznerApi(
            config.name, config.token_file, config.endpoint_url, self._budget, timeout=timeout, sleep=sleep
        )
        self._asked_last = 0
        self._listed: dict[int, dict[str, str]] = {}  # the labels of servers that this selector has matched
        self._told: set[int] = set()

    def discover(self) -> Snapshot:
        """Return the servers that are there.

        Raises DiscoveryError where Hetzner gave nothing at all.
        """
        self._budget.begin()
        listing = self._list()
        if listing.failure is not None and not listing.servers:
            raise DiscoveryError(self.config.name, listing.failure)
        self._listed |= {id_: server.labels for id_, server in listing.servers.items()}
        ended = {id_ for id_, server in listing.servers.items() if server.status in ENDED}
        return Snapshot(
            frozenset(self._agents(listing.servers.values())),
            frozenset(self._agent_id(id_) for id_ in ended),
            failures=(listing.failure,) if listing.failure else (),
        )

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Return what has become of agents that the listing lacks.

        Each costs a request, so those beyond the limit have their turn at the next polls. Raises DiscoveryError.
        """
        wanted = {self._server_id(agent.id): agent for agent in agents}
        ahead = sorted(wanted, key=lambda id_: (id_ <= self._asked_last, id_))
        there, gone = [], set()
        for id_ in ahead[:LOOK_UPS]:
            server = self._api.server(id_)
            self._asked_last = id_
            if server is None or server.status in ENDED:
                gone.add(wanted[id_].id)
                self._listed.pop(id_, None)
            else:
                there.append(server)
        same = [server for server in there if self._matches(server)]
        other = (server for server in there if not self._matches(server))
        outside = frozenset(wanted[one.id].id for one in other if wanted[one.id].labels != _labels(one))
        return Snapshot(frozenset(self._agents(same)), frozenset(gone), outside=outside)

    def _matches(self, server: Server) -> bool:
        """Tell whether a server is known to match the label selector."""
        return not self.config.label_selector or self._listed.get(server.id) == server.labels

    def pause(self) -> float:
        """Return how many seconds beyond the interval the next poll should wait, for others need the budget too."""
        return self._budget.pause()

    def _list(self) -> _Listing:
        """List the servers, again where they changed between two pages; what was seen before a failure still counts."""
        seen: dict[int, Server] = {}
        for _ in range(LISTINGS):
            servers: dict[int, Server] = {}
            totals: set[int | None] = set()
            try:
                for page in self._api.pages(self.config.label_selector):
                    servers |= {server.id: server for server in page.servers}
                    totals.add(page.total)
            except DiscoveryError as failed:
                return _Listing(seen | servers, failure=failed.reason)
            if totals <= {len(servers), None}:
                return _Listing(servers)
            seen |= servers
        return _Listing(seen, failure=f"servers came and went during each of {LISTINGS} listings, so none is whole")

    def _agents(self, servers: Iterable[Server]) -> Iterable[Agent]:
        for server in servers:
            if server.status in ENDED | NOT_YET:
                continue
            addresses = server.public_addresses() if self.config.address == "public" else server.private_addresses()
            if addresses:
                yield self._agent(server, addresses)
            elif server.id not in self._told:
                self._told.add(server.id)
                wanted = self.config.address
                log.warning("server has no such address", source=self.config.name, server=server.id, wanted=wanted)

    def _agent(self, server: Server, addresses: tuple[str, ...]) -> Agent:
        return Agent(
            id=self._agent_id(server.id),
            incarnation=server.created.astimezone(UTC).isoformat(),
            source=self.config.name,
            group=self.config.group,
            name=server.name,
            addresses=addresses,
            port=self.config.port,
            labels=_labels(server),
            rebuilding=server.status == "rebuilding",
        )

    def _agent_id(self, server: int) -> AgentId:
        return AgentId(f"hetzner:{self.config.project}:{server}")

    def _server_id(self, agent: AgentId) -> int:
        return int(agent.rpartition(":")[2])


def _labels(server: Server) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(server.labels.items()))
