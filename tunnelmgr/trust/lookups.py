"""The lookups that trust methods make; the daemon and the sources implement them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.seed import Seed


class HostKeyScanner(Protocol):
    """Reads an agent's host key from a key exchange, without offering a credential.

    `daemon/trust_lookups.py` implements it.
    """

    async def host_key(self, agent: Agent, wanted: Sequence[str] = ()) -> str:
        """Return the host key that the agent presents, as `type base64`; raises UnreachableError.

        With `wanted`, only keys of the same types as these are requested.
        """
        ...

    async def certificate(self, agent: Agent) -> bytes:
        """Return the blob of the agent's host certificate, or of its plain key if it has no certificate.

        The authority's signature is verified, the contents are not. Raises UnreachableError.
        """
        ...


class SeedLookup(Protocol):
    """Finds the seeds that the controller has stored; `daemon/trust_lookups.py` implements it."""

    def seed(self, id_: str) -> Seed | None:
        """Return a seed that may still prove its agent, None if it is unknown or has expired unclaimed."""
        ...


@runtime_checkable
class ConsoleReader(Protocol):
    """A source that can read an instance's console; `discovery/ec2.py` implements it."""

    def console_output(self, agent: Agent) -> str:
        """Return the console's text; blocks. Raises HostKeyUnknownError if it cannot be read."""
        ...
