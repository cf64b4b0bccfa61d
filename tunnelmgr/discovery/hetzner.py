"""Servers of Hetzner Cloud as agents; each source is one project.

Rules:
- The id identifies a server: ids are never reused, while names and addresses can pass to another server.
- `running` and `starting` servers are agents: a starting one has its address already. So are `migrating` and `unknown`
  ones, which do not mean an end. `initializing` is not an agent yet. `stopping`, `off` and `deleting` are the end.
  `rebuilding` is still an agent, but becomes another machine.
- Servers may come and go between two pages, so a listing is complete only if each page has the same total and as many
  servers were seen. Otherwise it is repeated, and after the last attempt reported as incomplete.
- A server that a complete listing lacks is requested by its id. It is gone (404), it has other labels, or the listing
  had a gap that the totals did not show. Only Hetzner evaluates the label selector, so a server that still has the
  labels with which it was listed is known to match; whether others match is unknown.

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
"""Listings in one poll, if servers come and go between their pages."""
MAX_REQUESTS_BY_ID = 50
"""Missing servers that are requested in one poll; the limit leaves most of the budget to others."""
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
    """The servers that were seen; complete unless there is a failure."""

    servers: dict[int, Server] = field(default_factory=dict)
    failure: str | None = None


class HetznerSource:
    """Lists the servers of one project that match the label selector."""

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
        self._last_requested = 0
        self._listed: dict[int, dict[str, str]] = {}  # the labels of servers that this selector has matched
        self._warned: set[int] = set()

    def discover(self) -> Snapshot:
        """Return the servers that exist.

        Raises DiscoveryError if Hetzner returned no server before a failure.
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
        """Return the state of agents that the listing lacks.

        Each costs a request, so those beyond the limit are requested in the next polls. Raises DiscoveryError.
        """
        wanted = {self._server_id(agent.id): agent for agent in agents}
        queue = sorted(wanted, key=lambda id_: (id_ <= self._last_requested, id_))
        there, gone = [], set()
        for id_ in queue[:MAX_REQUESTS_BY_ID]:
            server = self._api.server(id_)
            self._last_requested = id_
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
        """Return whether a server is known to match the label selector."""
        return not self.config.label_selector or self._listed.get(server.id) == server.labels

    def pause(self) -> float:
        """Return by how many seconds beyond the interval to delay the next poll, so that others can use the budget."""
        return self._budget.pause()

    def _list(self) -> _Listing:
        """List the servers, and again if they changed between two pages; servers seen before a failure still count."""
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
        return _Listing(seen, failure=f"servers came and went during each of {LISTINGS} listings, so none is complete")

    def _agents(self, servers: Iterable[Server]) -> Iterable[Agent]:
        for server in servers:
            if server.status in ENDED | NOT_YET:
                continue
            addresses = server.public_addresses() if self.config.address == "public" else server.private_addresses()
            if addresses:
                yield self._agent(server, addresses)
            elif server.id not in self._warned:
                self._warned.add(server.id)
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
