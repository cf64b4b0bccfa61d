"""A probe: a request sent through the agent's own listener and back, which only our gate can answer rightly.

The answer to a nonce is an HMAC over it, the agent and the listen address, under a secret of this process. A
squatter on the agent cannot compute it, and one that passes the request on to another of our listeners returns the
proof of that one.
"""

import hashlib
import hmac
import json
import secrets
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ImpostorListenerError

PATH = "/.well-known/tunnelmgr"
ANSWER_LIMIT = 16 * 1024


class Wire(Protocol):
    """What a probe needs of a connection."""

    async def exchange(self, endpoint: Endpoint, request: bytes, limit: int) -> bytes:
        """Connect from the agent to `endpoint`, send, and return what comes back."""
        ...


class Prover:
    """Makes proofs for the gate and checks them for the probe."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def proof(self, nonce: str, agent: AgentId, listener: str) -> str:
        """Return the proof that a request with `nonce` came in through `listener` on `agent`."""
        return hmac.new(self._secret, f"{nonce}\n{agent}\n{listener}".encode(), hashlib.sha256).hexdigest()

    async def probe(self, wire: Wire, agent: AgentId, listener: Endpoint) -> None:
        """Send one request through a listener.

        Raises ImpostorListenerError where the answer is not ours, and what `exchange` raises. The caller sets the
        deadline.
        """
        nonce = secrets.token_hex(16)
        request = f"GET {PATH} HTTP/1.1\r\nHost: {listener}\r\nTunnelmgr-Nonce: {nonce}\r\nConnection: close\r\n\r\n"
        answer = await wire.exchange(listener, request.encode(), ANSWER_LIMIT)
        if not hmac.compare_digest(_proof_in(answer), self.proof(nonce, agent, str(listener))):
            raise ImpostorListenerError(str(listener))


def _proof_in(answer: bytes) -> str:
    _, _, body = answer.partition(b"\r\n\r\n")
    try:
        proof = json.loads(body).get("proof", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return proof if isinstance(proof, str) and proof.isascii() else ""
