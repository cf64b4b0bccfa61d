"""One registry behind a channel: where it is, the connection to it, and the gate's own requests on that connection."""

from dataclasses import dataclass
from typing import Self

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.registry_connection import RegistryConnection
from tunnelmgr.gate.registry_queries import RegistryQueries


@dataclass(frozen=True, slots=True)
class ConnectedRegistry:
    """A registry with one channel's connection to it; a channel to a read-only replica has two of these."""

    endpoint: Endpoint
    connection: RegistryConnection
    queries: RegistryQueries

    @classmethod
    def at(cls, endpoint: Endpoint, slots: Slots, timeout: float) -> Self:
        """Return the registry at an endpoint; `timeout` is that of each step of a response, in seconds."""
        connection = RegistryConnection(endpoint, slots, head_timeout=timeout, idle_timeout=timeout)
        return cls(endpoint, connection, RegistryQueries(connection, timeout))
