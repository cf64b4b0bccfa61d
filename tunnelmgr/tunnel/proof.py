"""The proof that a listener is ours: a request through the agent's own listener, which only our gate can answer.

The answer is an HMAC over the request's nonce, the agent and the listen address, with a secret of this process. Another
process on the agent cannot compute it; if it relays the request to another of our listeners, it returns the proof of
that one.

The stream through the listener is kept for the next probe: opening and closing two channels for each would cost four
times as much as the request itself. Through a kept stream, the request need not be answered: that its nonce arrives at
our gate, from this listener, shows the same, at half the cost. Anything else that answers it is an impostor.
"""

import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import probe_request
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ImpostorListenerError

ANSWER_LIMIT = 16 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})(?:\r\n|$)", re.IGNORECASE)


class ByteStream(Protocol):
    """A stream through a listener of the agent; `dataplane/channel.py` implements it."""

    async def write(self, data: bytes) -> None:
        """Send; raises ConnectionError."""
        ...

    async def read(self) -> bytes:
        """Return what has arrived, `b""` at the end; raises ConnectionError."""
        ...

    async def read_unless(self, done: Callable[[], bool]) -> bytes | None:
        """Return as `read` does, or None once `done` returns True; `wake` has it called again."""
        ...

    def wake(self) -> None:
        """Have `read_unless` look again."""
        ...


@dataclass(slots=True)
class _Expected:
    """A nonce that is on its way to our gate."""

    agent: AgentId
    listener: str
    wake: Callable[[], None]
    arrived: bool = False

    def has_arrived(self) -> bool:
        return self.arrived


class Prover:
    """Computes proofs for the gate, and checks them for the prober."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._expected: dict[str, _Expected] = {}

    def proof(self, nonce: str, agent: AgentId, listener: str) -> str:
        """Return the proof for a request with `nonce` that came in through `listener` on `agent`."""
        return hmac.digest(self._secret, f"{nonce}\n{agent}\n{listener}".encode(), "sha256").hex()

    def note_arrival(self, nonce: str, agent: AgentId, listener: str) -> bool:
        """Note that `nonce` came in through `listener` on `agent`; returns whether `probe_arrival` waits for that."""
        expected = self._expected.get(nonce)
        if expected is None or expected.agent != agent or expected.listener != listener:
            return False
        expected.arrived = True
        expected.wake()
        return True

    async def probe(self, stream: ByteStream, agent: AgentId, listener: Endpoint) -> None:
        """Send one request through a stream, which may be used again, and check the answer.

        Raises ImpostorListenerError if the answer is not ours, and ConnectionError if the stream ends without one. The
        caller sets the deadline.
        """
        nonce = secrets.token_hex(16)
        await stream.write(probe_request(str(listener), nonce))
        self._check(await _answer(stream), nonce, agent, listener)

    async def probe_arrival(self, stream: ByteStream, agent: AgentId, listener: Endpoint) -> None:
        """Send one request through a stream that `probe` has used, and wait until it arrives at our gate.

        Raises as `probe` does; an answer is checked as there.
        """
        nonce, address = secrets.token_hex(16), str(listener)
        expected = self._expected[nonce] = _Expected(agent, address, stream.wake)
        try:
            await stream.write(probe_request(address, nonce))
            answer = await stream.read_unless(expected.has_arrived)
        finally:
            del self._expected[nonce]
        if answer is not None:
            self._check(await _answer(stream, answer), nonce, agent, listener)

    def _check(self, answer: bytes, nonce: str, agent: AgentId, listener: Endpoint) -> None:
        if not hmac.compare_digest(_text_in(answer, "proof"), self.proof(nonce, agent, str(listener))):
            raise ImpostorListenerError(str(listener))


async def controller_at(stream: ByteStream, listener: Endpoint) -> str:
    """Return the name of the controller that answers through a listener, "" if something else does.

    The agent could forge it, to its own harm only. Raises ConnectionError; the caller sets the deadline.
    """
    await stream.write(probe_request(str(listener), secrets.token_hex(16)))
    return _text_in(await _answer(stream), "controller")


async def _answer(stream: ByteStream, answer: bytes = b"") -> bytes:
    """Return the body of the answer, up to its Content-Length, the end of the stream, or the limit.

    `answer` is what has arrived of it.
    """
    while len(answer) < ANSWER_LIMIT:
        head, end, body = answer.partition(b"\r\n\r\n")
        if end and (length := _LENGTH.search(head)) and len(body) >= int(length[1]):
            return body
        more = await stream.read()
        if not more:
            break
        answer += more
    if not answer:
        raise ConnectionResetError("the stream ended without an answer")
    return answer.partition(b"\r\n\r\n")[2]


def _text_in(body: bytes, key: str) -> str:
    """Return a text in a JSON object, "" if there is none."""
    try:
        found = json.loads(body).get(key, "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) and found.isascii() else ""
