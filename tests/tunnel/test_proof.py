"""The proof that a listener is ours, against everything that might answer instead."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import WELL_KNOWN_PATH
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ImpostorListenerError
from tunnelmgr.tunnel.proof import ANSWER_LIMIT, Prover

AGENT = AgentId("static:builder-1")
LISTENER = Endpoint("127.0.0.1", 5000)


@dataclass
class Answering:
    """A stream with a given answer; with `gate`, the answer is our gate's for some agent and listener."""

    answer: bytes = b""
    gate: tuple[Prover, AgentId, str] | None = None
    requests: list[bytes] = field(default_factory=list)
    pieces: int = 1
    coming: list[bytes] = field(default_factory=list)
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        """Take the request, and return the answer in this many pieces."""
        self.requests.append(data)
        answer = self.answer
        if self.gate is not None:
            prover, agent, listener = self.gate
            answer = answered(proof=prover.proof(self.nonce, agent, listener))
        size = max(1, -(-len(answer) // self.pieces))
        self.coming += [answer[start : start + size] for start in range(0, len(answer), size)]

    async def read(self) -> bytes:
        """Return the next piece, and the end after the last one."""
        return self.coming.pop(0) if self.coming else b""

    async def read_unless(self, done: Callable[[], bool]) -> bytes | None:
        """Return the next piece, or None if the nonce has arrived."""
        while not self.coming:
            if done():
                return None
            self.woken.clear()
            await self.woken.wait()
        return self.coming.pop(0)

    def wake(self) -> None:
        """Have `read_unless` look again."""
        self.woken.set()

    @property
    def nonce(self) -> str:
        """The nonce of the latest request."""
        lines = self.requests[-1].decode().split("\r\n")
        return next(line.partition(": ")[2] for line in lines if line.startswith("Tunnelmgr-Nonce"))


def answered(**body: object) -> bytes:
    """Return an answer with a JSON object as its body."""
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content


@pytest.mark.parametrize("pieces", [1, 3, 1000])
async def test_our_own_gate_passes(pieces: int) -> None:
    """The request is a plain GET of the well-known path with the listener as Host; the answer may come in pieces."""
    prover = Prover()
    wire = Answering(gate=(prover, AGENT, str(LISTENER)), pieces=pieces)

    await prover.probe(wire, AGENT, LISTENER)

    assert wire.requests[0].startswith(f"GET {WELL_KNOWN_PATH} HTTP/1.1\r\nHost: 127.0.0.1:5000\r\n".encode())
    assert wire.requests[0].endswith(b"\r\n\r\n")
    assert b"close" not in wire.requests[0].lower()
    assert wire.coming == []


async def test_a_stream_that_ends_without_an_answer_is_a_connection_error() -> None:
    """A stream that ends is a ConnectionError and not an impostor, because a kept stream may have been closed."""
    with pytest.raises(ConnectionResetError):
        await Prover().probe(Answering(b""), AGENT, LISTENER)


async def test_every_probe_has_a_nonce_of_its_own() -> None:
    """Each probe has a new nonce, so that no answer can be used twice."""
    prover = Prover()
    wire = Answering(gate=(prover, AGENT, str(LISTENER)))
    nonces = set()
    for _ in range(3):
        await prover.probe(wire, AGENT, LISTENER)
        nonces.add(wire.nonce)

    assert len(nonces) == 3


async def test_a_replayed_answer_is_an_impostor() -> None:
    """A recorded answer does not pass the next probe."""
    prover = Prover()
    honest = Answering(gate=(prover, AGENT, str(LISTENER)))
    await prover.probe(honest, AGENT, LISTENER)
    recorded = answered(proof=prover.proof(honest.nonce, AGENT, str(LISTENER)))

    with pytest.raises(ImpostorListenerError):
        await prover.probe(Answering(recorded), AGENT, LISTENER)


@pytest.mark.parametrize(
    ("agent", "listener"),
    [(AGENT, "[::1]:5000"), (AGENT, "127.0.0.1:5001"), (AgentId("static:builder-2"), "127.0.0.1:5000")],
)
async def test_the_proof_of_another_listener_is_an_impostor(agent: AgentId, listener: str) -> None:
    """A proof for another agent or listener does not pass, although it is ours."""
    prover = Prover()

    with pytest.raises(ImpostorListenerError, match=r"127\.0\.0\.1:5000"):
        await prover.probe(Answering(gate=(prover, agent, listener)), AGENT, LISTENER)


async def test_the_proof_of_another_process_is_an_impostor() -> None:
    """A proof with another process's secret does not pass."""
    with pytest.raises(ImpostorListenerError):
        await Prover().probe(Answering(gate=(Prover(), AGENT, str(LISTENER))), AGENT, LISTENER)


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\nnull",
        b'HTTP/1.1 200 OK\r\n\r\n"proof"',
        b"HTTP/1.1 200 OK\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\x00",
        b'HTTP/1.1 200 OK\r\n\r\n{"proof": null}',
        b'HTTP/1.1 200 OK\r\n\r\n{"proof": ["a"]}',
        b'HTTP/1.1 200 OK\r\n\r\n{"proof": "\\u00e9"}',
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * (ANSWER_LIMIT - 19),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"9" * (ANSWER_LIMIT - 19),
        b'HTTP/1.1 200 OK\r\n\r\n{"proof": "' + b"a" * ANSWER_LIMIT + b'"}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n{"proof": ""}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"proof": ""}',
    ],
    ids=lambda answer: answer[-24:].decode("latin-1"),
)
async def test_any_other_answer_is_an_impostor(answer: bytes) -> None:
    """Any other answer raises ImpostorListenerError and no other error."""
    with pytest.raises(ImpostorListenerError):
        await Prover().probe(Answering(answer), AGENT, LISTENER)


async def test_the_arrival_of_its_nonce_proves_a_probe() -> None:
    """A probe through a kept stream ends when our gate has its nonce, from this agent and listener only, and once."""
    prover, stream = Prover(), Answering()
    async with asyncio.TaskGroup() as tasks:
        probe = tasks.create_task(prover.probe_arrival(stream, AGENT, LISTENER), name="probe")
        await until(lambda: stream.requests)

        assert not prover.note_arrival("0" * 32, AGENT, str(LISTENER))
        assert not prover.note_arrival(stream.nonce, AgentId("static:builder-2"), str(LISTENER))
        assert not prover.note_arrival(stream.nonce, AGENT, "127.0.0.1:5001")
        await asyncio.sleep(0)
        assert not probe.done()

        assert prover.note_arrival(stream.nonce, AGENT, str(LISTENER))

    assert probe.done()
    assert not prover.note_arrival(stream.nonce, AGENT, str(LISTENER))


async def test_an_answer_of_our_gate_proves_a_probe_that_needs_none() -> None:
    """A request that arrives in pieces is answered like any other, and the answer is as good."""
    prover = Prover()

    await prover.probe_arrival(Answering(gate=(prover, AGENT, str(LISTENER)), pieces=7), AGENT, LISTENER)

    assert prover._expected == {}


async def test_an_answer_of_something_else_is_an_impostors() -> None:
    """Whether or not an answer is needed, another one is noticed."""
    prover = Prover()
    with pytest.raises(ImpostorListenerError):
        await prover.probe_arrival(Answering(answered(proof="0" * 64)), AGENT, LISTENER)

    assert prover._expected == {}


async def test_a_kept_stream_that_has_ended_is_a_connection_error() -> None:
    """The caller then opens another one."""
    stream = Answering(b"")
    stream.coming.append(b"")

    with pytest.raises(ConnectionResetError):
        await Prover().probe_arrival(stream, AGENT, LISTENER)
