"""The stand-in for Jenkins remoting: byte for byte the handshake that remoting sends, and what breaks it."""

import base64
import io
import os
import threading

import pytest

from lab.jenkins.remoting import BINARY, PREAMBLE, HandshakeError, capability, negotiate, receive, send, serve

CAPABILITY = b"rO0ABXNyABpodWRzb24ucmVtb3RpbmcuQ2FwYWJpbGl0eQAAAAAAAAABAgABSgAEbWFza3hwAAAAAAAAAf4="
"""What remoting sends after its preamble, as in the logs of agents that were started by hand."""


def test_the_preamble_is_that_of_remoting() -> None:
    """The capability has the bytes of remoting's own, which are a serialized Java object in Base64."""
    assert capability() == PREAMBLE + CAPABILITY
    assert base64.b64decode(CAPABILITY)[:4] == b"\xac\xed\x00\x05"


def test_both_sides_agree_and_run_a_command() -> None:
    """Jenkins and the agent's program shake hands over pipes, and a command's result comes back."""
    to_agent, from_jenkins = os.pipe()
    to_jenkins, from_agent = os.pipe()
    with (
        os.fdopen(to_agent, "rb") as agent_in,
        os.fdopen(from_agent, "wb") as agent_out,
        os.fdopen(to_jenkins, "rb") as jenkins_in,
    ):
        agent = threading.Thread(target=serve, args=(agent_in, agent_out))
        with os.fdopen(from_jenkins, "wb") as jenkins_out:
            agent.start()
            noise = negotiate(jenkins_in, jenkins_out)
            send(jenkins_out, {"sh": "seq 100000; exit 3"})
            result = receive(jenkins_in)
        agent.join(10)

    assert noise == b""
    assert result is not None
    assert result["status"] == 3  # type: ignore[comparison-overlap]
    assert result["output"].splitlines()[-1] == "100000", "it takes several chunks"


def test_output_before_the_preamble_is_noise_in_jenkins_log() -> None:
    """Jenkins reads past text that a program printed before the agent, as the source of ChannelBuilder says."""
    stream = io.BytesIO(b"tunnelmgr: waiting\n" + capability() + BINARY)

    assert negotiate(stream, io.BytesIO()) == b"tunnelmgr: waiting\n"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"command not found\n",
        capability(),
        PREAMBLE + b"noise " + CAPABILITY + BINARY,
        b"\0\0\0\0" + capability() + BINARY,
        capability()[20:] + BINARY,
    ],
    ids=["nothing", "an error", "no mode", "output within the preamble", "zeros before it", "a part is missing"],
)
def test_a_stream_that_is_no_handshake_is_refused(stream: bytes) -> None:
    """A stream that ends early, lacks a part, or has another program's output in its preamble is not a channel."""
    with pytest.raises(HandshakeError):
        negotiate(io.BytesIO(stream), io.BytesIO())
