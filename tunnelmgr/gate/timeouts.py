"""How long the gate waits; the theory of operation in `gate/__init__.py` says what each deadline ends in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that the gate waits.

    `response` bounds three waits: for the head of the registry's response (storing a manifest on S3 is slow), for more
    of its body, and for the agent to take it.
    """

    idle: float = 120.0  # for the first byte of a request
    head: float = 10.0  # from the first byte of a request to the end of its head
    body: float = 60.0  # for more of a request's body
    response: float = 300.0
    drain: float = 5.0  # for the remaining bytes of a refused body
    search: float = 30.0  # for the search of what protected tags point to, before a delete
