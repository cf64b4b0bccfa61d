"""Host key scans: a genuine key or certificate is returned, a forged one is not, and no credentials are offered."""

import asyncio
import base64
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh.ssh_server import Sshd, free_port, generate, public, running_sshd, running_tcp_server
from tests.until import until
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import is_certificate
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.host_key_scan import (
    _Recorder,
    _RecordingDialer,
    presented_blob,
    scan_host_certificate,
    scan_host_key,
)
from tunnelmgr.trust.certificate import parse
from tunnelmgr.tunnel.admission import Admission

KINDS = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"]


def certified(
    host: asyncssh.SSHKey, authority: asyncssh.SSHKey, principal: str = "static:builder-1"
) -> asyncssh.SSHCertificate:
    """Return a host certificate."""
    return authority.generate_host_certificate(host, "test", principals=[principal])


def presenting(
    host: asyncssh.SSHKey, certificate: asyncssh.SSHCertificate, accepts: asyncssh.SSHKey
) -> AbstractAsyncContextManager[Sshd]:
    """Run an agent's sshd that presents a certificate, and its plain key to clients that ask for no certificate."""
    return running_sshd(Sshd((host, certificate), accepts))  # type: ignore[arg-type]  # asyncssh takes the pair


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plain_key_of_every_type_is_shown(key: asyncssh.SSHKey, kind: str) -> None:
    """A scan returns the key as `type base64`, and offers no credentials."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd:
        shown = await scan_host_key(sshd.agent(), 5)

    assert shown == sshd.host_key
    assert (sshd.logins_started, sshd.users, sshd.offered) == (0, [], [])


async def test_a_key_of_a_certain_type_is_asked_for(key: asyncssh.SSHKey) -> None:
    """An agent presents its key of the wanted type, and none if it has no such key."""
    async with running_sshd(Sshd(generate("ecdsa-sha2-nistp256"), key)) as sshd:
        shown = await scan_host_key(sshd.agent(), 5, wanted=[public(generate("ecdsa-sha2-nistp256"))])
        with pytest.raises(UnreachableError):
            await scan_host_key(sshd.agent(), 5, wanted=[public(generate("ssh-ed25519"))])

    assert shown == sshd.host_key


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_of_every_type_is_shown_whole(key: asyncssh.SSHKey, kind: str) -> None:
    """A scan returns the complete certificate, and offers no credentials."""
    host, authority = generate(kind), generate()

    async with presenting(host, certified(host, authority), key) as sshd:
        blob = await scan_host_certificate(sshd.agent(), 5)

    facts = parse(blob)
    assert (facts.key, facts.authority) == (public(host), public(authority))
    assert facts.principals == ("static:builder-1",)
    assert (sshd.logins_started, sshd.offered) == (0, [])


async def test_an_agent_with_a_certificate_shows_its_plain_key_too(key: asyncssh.SSHKey) -> None:
    """A scan for plain keys gets the plain key from an agent that has a certificate too."""
    host = generate()

    async with presenting(host, certified(host, generate()), key) as sshd:
        shown = await scan_host_key(sshd.agent(), 5)

    assert shown == public(host)


async def test_an_agent_without_a_certificate_shows_its_plain_key(sshd: Sshd) -> None:
    """A scan for a certificate returns the plain key of an agent without one, distinguishable by its type."""
    blob = await scan_host_certificate(sshd.agent(), 5)

    assert not is_certificate(blob)
    assert base64.b64encode(blob).decode() == sshd.host_key.split()[1]


async def test_a_certificate_whose_signature_is_forged_is_not_shown(key: asyncssh.SSHKey) -> None:
    """A certificate whose content was changed after signing makes the agent unreachable."""
    host = generate()
    genuine = certified(host, generate())
    forged = bytearray(genuine.public_data)
    at = forged.index(b"static:builder-1")
    forged[at : at + 16] = b"static:builder-2"
    genuine.public_data = bytes(forged)

    async with presenting(host, genuine, key) as sshd:
        with pytest.raises(UnreachableError, match="Unable to decode host key"):
            await scan_host_certificate(sshd.agent(), 5)


async def test_a_certificate_of_another_agent_is_refused(key: asyncssh.SSHKey) -> None:
    """An agent that presents a certificate must sign the key exchange with the key in it."""
    victim, thief = generate(), generate()
    stolen = certified(victim, generate())
    stolen.key = thief  # else asyncssh will not show it

    async with presenting(thief, stolen, key) as sshd:
        with pytest.raises(UnreachableError):
            await scan_host_certificate(sshd.agent(), 5)


async def test_a_silent_agent_is_unreachable_after_the_deadline(sshd: Sshd) -> None:
    """A scan of a silent agent ends after the requested time."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running_tcp_server(silent) as at:
        with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
            await scan_host_certificate(replace(sshd.agent(), port=at.port), 0.2)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"\xff" * 4096])
async def test_another_service_on_the_port_is_unreachable(sshd: Sshd, said: bytes) -> None:
    """A scan of a port with another service fails with UnreachableError, regardless of what the service sends."""

    async def other_service(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with running_tcp_server(other_service) as at:
        agent: Agent = replace(sshd.agent(), port=at.port)
        with pytest.raises(UnreachableError):
            await scan_host_key(agent, 0.3)


async def test_a_scan_waits_for_admission_like_any_dial(sshd: Sshd) -> None:
    """A scan waits for a place in the same queue as tunnels, and returns place and slot, even if it fails."""
    admission = Admission(places=1)
    other = admission.permit()
    await other.acquire_place()
    async with asyncio.TaskGroup() as tasks:
        scanning = tasks.create_task(scan_host_key(sshd.agent(), 5, permit=admission.permit()), name="scan")
        await until(lambda: admission._dials)
        assert sshd.connections == []
        other.end()
        assert await scanning == sshd.host_key
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), port=free_port()), 5, permit=admission.permit())

    assert (admission._places, admission._ahead, admission._slots) == (0, 0, 0)


# --- what is overreceived ---


def packet(payload: bytes) -> bytes:
    """Return an SSH packet before any encryption (RFC 4253, section 6)."""
    padding = 8 - (5 + len(payload)) % 8 + 8
    return (1 + len(payload) + padding).to_bytes(4) + bytes([padding]) + payload + bytes(padding)


def string(content: bytes) -> bytes:
    """Return a string as RFC 4251, section 5, has it."""
    return len(content).to_bytes(4) + content


REPLY = packet(b"\x1f" + string(b"blob") + string(b"theirs") + string(b"signature"))


@pytest.mark.parametrize("before", [b"", b"Welcome\r\n", b"any line\nanother\r\n"])
def test_the_key_is_found_behind_other_lines_and_other_packets(before: bytes) -> None:
    """The key is found after a banner (RFC 4253, section 4.2) and after the packet with the algorithms."""
    received = before + b"SSH-2.0-test\r\n" + packet(b"\x14" + bytes(100)) + packet(b"\x02" + string(b"")) + REPLY

    assert presented_blob(received) == b"blob"
    assert presented_blob(received + b"\xff" * 100) == b"blob"


@given(st.binary(max_size=200), st.booleans(), st.integers(0, len(REPLY) - 1))
def test_no_bytes_are_taken_for_a_key_that_is_not_whole(noise: bytes, begins: bool, cut: int) -> None:
    """Invalid or truncated input neither raises an error nor yields a key."""
    assert presented_blob((b"SSH-2.0-test\n" if begins else b"") + noise) in {None, *windows(noise)}
    assert presented_blob(b"SSH-2.0-test\n" + REPLY[:cut]) in {None, b"blob"}
    assert presented_blob(b"SSH-2.0-test\n" + packet(b"\x1f" + (1 << 20).to_bytes(4) + noise)) is None


def windows(noise: bytes) -> set[bytes]:
    """Return every piece of some bytes."""
    return {noise[start:end] for start in range(len(noise)) for end in range(start, len(noise) + 1)}


def test_a_key_that_did_not_sign_the_key_exchange_is_not_returned() -> None:
    """A certificate of another agent is ignored, because its key did not sign the key exchange."""
    own, other = generate(), generate()
    dialer = _RecordingDialer(("127.0.0.1",), 1)
    dialer.recorder = _Recorder(asyncio.Protocol())
    dialer.recorder.received += b"SSH-2.0-test\n" + packet(b"\x1f" + string(certified(other, generate()).public_data))

    assert dialer.presented(own.convert_to_public()) is None
    assert dialer.presented(None) is None
    assert is_certificate(dialer.presented(other.convert_to_public()) or b"")
