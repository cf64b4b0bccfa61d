"""Looking at a host key: what is shown is returned, what is forged is not, and nothing is offered."""

import asyncio
import base64
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh.ssh_server import Sshd, free_port, generate, public, running_sshd, running_tcp_server, until
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import is_certificate
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.host_key_scan import _LookingDialer, _Overhearing, host_key_shown, shown_certificate, shown_key
from tunnelmgr.trust.certificate import parse
from tunnelmgr.tunnel.admission import Admission

KINDS = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"]


def certified(
    host: asyncssh.SSHKey, authority: asyncssh.SSHKey, principal: str = "static:builder-1"
) -> asyncssh.SSHCertificate:
    """Return a host certificate."""
    return authority.generate_host_certificate(host, "test", principals=[principal])


def showing(
    host: asyncssh.SSHKey, certificate: asyncssh.SSHCertificate, accepts: asyncssh.SSHKey
) -> AbstractAsyncContextManager[Sshd]:
    """Run an agent's sshd that shows a certificate, and its plain key to those who do not ask for one."""
    return running_sshd(Sshd((host, certificate), accepts))  # type: ignore[arg-type]  # asyncssh takes the pair


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plain_key_of_every_type_is_shown(key: asyncssh.SSHKey, kind: str) -> None:
    """As `type base64`, and nothing is offered."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd:
        shown = await shown_key(sshd.agent(), 5)

    assert shown == sshd.host_key
    assert (sshd.logins_begun, sshd.users, sshd.offered) == (0, [], [])


async def test_a_key_of_a_certain_type_is_asked_for(key: asyncssh.SSHKey) -> None:
    """An agent shows the key of the wanted type, not the one that it would prefer; without one it shows nothing."""
    async with running_sshd(Sshd(generate("ecdsa-sha2-nistp256"), key)) as sshd:
        shown = await shown_key(sshd.agent(), 5, wanted=[public(generate("ecdsa-sha2-nistp256"))])
        with pytest.raises(UnreachableError):
            await shown_key(sshd.agent(), 5, wanted=[public(generate("ssh-ed25519"))])

    assert shown == sshd.host_key


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_of_every_type_is_shown_whole(key: asyncssh.SSHKey, kind: str) -> None:
    """With all that it says; and nothing is offered."""
    host, authority = generate(kind), generate()

    async with showing(host, certified(host, authority), key) as sshd:
        blob = await shown_certificate(sshd.agent(), 5)

    facts = parse(blob)
    assert (facts.key, facts.authority) == (public(host), public(authority))
    assert facts.principals == ("static:builder-1",)
    assert (sshd.logins_begun, sshd.offered) == (0, [])


async def test_an_agent_with_a_certificate_shows_its_plain_key_too(key: asyncssh.SSHKey) -> None:
    """For the methods that know keys only."""
    host = generate()

    async with showing(host, certified(host, generate()), key) as sshd:
        shown = await shown_key(sshd.agent(), 5)

    assert shown == public(host)


async def test_an_agent_without_a_certificate_shows_its_plain_key(sshd: Sshd) -> None:
    """Which is told from one."""
    blob = await shown_certificate(sshd.agent(), 5)

    assert not is_certificate(blob)
    assert base64.b64encode(blob).decode() == sshd.host_key.split()[1]


async def test_a_certificate_whose_signature_is_forged_is_not_shown(key: asyncssh.SSHKey) -> None:
    """It says whatever its maker likes."""
    host = generate()
    genuine = certified(host, generate())
    forged = bytearray(genuine.public_data)
    at = forged.index(b"static:builder-1")
    forged[at : at + 16] = b"static:builder-2"
    genuine.public_data = bytes(forged)

    async with showing(host, genuine, key) as sshd:
        with pytest.raises(UnreachableError, match="Unable to decode host key"):
            await shown_certificate(sshd.agent(), 5)


async def test_a_certificate_that_somebody_else_recorded_is_of_no_use(key: asyncssh.SSHKey) -> None:
    """Whoever shows it has to sign the key exchange with the key in it."""
    victim, thief = generate(), generate()
    stolen = certified(victim, generate())
    stolen.key = thief  # else asyncssh will not show it

    async with showing(thief, stolen, key) as sshd:
        with pytest.raises(UnreachableError):
            await shown_certificate(sshd.agent(), 5)


async def test_an_agent_that_says_nothing_is_given_up(sshd: Sshd) -> None:
    """Within the patience that was asked for."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running_tcp_server(silent) as at:
        with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
            await shown_certificate(replace(sshd.agent(), port=at.port), 0.2)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"\xff" * 4096])
async def test_what_is_no_ssh_server_shows_nothing(sshd: Sshd, said: bytes) -> None:
    """Another service on the port."""

    async def odd(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with running_tcp_server(odd) as at:
        agent: Agent = replace(sshd.agent(), port=at.port)
        with pytest.raises(UnreachableError):
            await shown_key(agent, 2)


async def test_a_look_takes_its_place_with_all_other_dials(sshd: Sshd) -> None:
    """It waits where tunnels do, in the same order, and gives back what it took, also where it fails."""
    admission = Admission(places=1)
    other = admission.permit()
    await other.acquire_place()
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(shown_key(sshd.agent(), 5, permit=admission.permit()), name="look")
        await until(lambda: admission._dials)
        assert sshd.connections == []
        other.end()
        assert await looking == sshd.host_key
    with pytest.raises(UnreachableError):
        await shown_key(replace(sshd.agent(), port=free_port()), 5, permit=admission.permit())

    assert (admission._places, admission._ahead, admission._slots) == (0, 0, 0)


# --- what is overheard ---


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
    """A server may greet first (RFC 4253, section 4.2), and it names its algorithms before it shows its key."""
    heard = before + b"SSH-2.0-test\r\n" + packet(b"\x14" + bytes(100)) + packet(b"\x02" + string(b"")) + REPLY

    assert host_key_shown(heard) == b"blob"
    assert host_key_shown(heard + b"\xff" * 100) == b"blob"


@given(st.binary(max_size=200), st.booleans(), st.integers(0, len(REPLY) - 1))
def test_no_bytes_are_taken_for_a_key_that_is_not_whole(noise: bytes, begins: bool, cut: int) -> None:
    """Whatever arrives, or is cut off, is read without a fault."""
    assert host_key_shown((b"SSH-2.0-test\n" if begins else b"") + noise) in {None, *windows(noise)}
    assert host_key_shown(b"SSH-2.0-test\n" + REPLY[:cut]) in {None, b"blob"}
    assert host_key_shown(b"SSH-2.0-test\n" + packet(b"\x1f" + (1 << 20).to_bytes(4) + noise)) is None


def windows(noise: bytes) -> set[bytes]:
    """Return every piece of some bytes."""
    return {noise[start:end] for start in range(len(noise)) for end in range(start, len(noise) + 1)}


def test_a_key_that_did_not_sign_the_key_exchange_is_not_returned() -> None:
    """An agent may send another's certificate as well; only what is for the proved key counts."""
    own, other = generate(), generate()
    dialer = _LookingDialer(("127.0.0.1",), 1)
    dialer.overheard = _Overhearing(asyncio.Protocol())
    dialer.overheard.heard += b"SSH-2.0-test\n" + packet(b"\x1f" + string(certified(other, generate()).public_data))

    assert dialer.shown(own.convert_to_public()) is None
    assert dialer.shown(None) is None
    assert is_certificate(dialer.shown(other.convert_to_public()) or b"")
