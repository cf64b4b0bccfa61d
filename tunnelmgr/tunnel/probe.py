"""A probe: a request sent through the agent's own listener and back, which only our gate can answer rightly.

The answer to a nonce is an HMAC over it, the agent and the listen address, under a secret of this process. A
squatter on the agent cannot compute it, and one that passes the request on to another of our listeners returns the
proof of that one.

The stream through the listener is kept from probe to probe: that spares both sides the opening and closing of two
channels, which cost four times as much as the question itself.
"""

import hmac
import json
import re
import secrets
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import probe_request
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ImpostorListenerError

ANSWER_LIMIT = 16 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})(?:\r\n|$)", re.IGNORECASE)


class Wire(Protocol):
    """A stream through a listener of the agent's."""

    async def write(self, data: bytes) -> None:
        """Send; raises ConnectionError."""
        ...

    async def read(self) -> bytes:
        """Return what has arrived, `b""` at the end; raises ConnectionError."""
        ...


class Prover:
    """Makes proofs for the gate and checks them for the probe."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def proof(self, nonce: str, agent: AgentId, listener: str) -> str:
        """Return the proof that a request with `nonce` came in through `listener` on `agent`."""
        return hmac.digest(self._secret, f"{nonce}\n{agent}\n{listener}".encode(), "sha256").hex()

    async def probe(self, wire: Wire, agent: AgentId, listener: Endpoint) -> None:
        """Ask once, through a stream that may be used again.

        Raises ImpostorListenerError where the answer is not ours, and ConnectionError where the stream ends without
        one. The caller sets the deadline.
        """
        nonce = secrets.token_hex(16)
        await wire.write(probe_request(str(listener), nonce))
        proof = _proof_in(await _answer(wire))
        if not hmac.compare_digest(proof, self.proof(nonce, agent, str(listener))):
            raise ImpostorListenerError(str(listener))


async def _answer(wire: Wire) -> bytes:
    """Return the body of the answer: as much as its head says, or what came until the end or the limit."""
    answer = b""
    while len(answer) < ANSWER_LIMIT:
        head, end, body = answer.partition(b"\r\n\r\n")
        if end and (told := _LENGTH.search(head)) and len(body) >= int(told[1]):
            return body
        more = await wire.read()
        if not more:
            break
        answer += more
    if not answer:
        raise ConnectionResetError("the stream ended without an answer")
    return answer.partition(b"\r\n\r\n")[2]


def _proof_in(body: bytes) -> str:
    try:
        proof = json.loads(body).get("proof", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return proof if isinstance(proof, str) and proof.isascii() else ""
