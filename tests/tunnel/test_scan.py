"""Looking at a host key: what is shown is returned, what is forged is not, and nothing is offered."""

import asyncio
import base64
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import asyncssh
import pytest

from tests.tunnel.ssh_server import Sshd, generate, public, sshd_at_work, tcp_at_work
from tunnelmgr.core.agent import Agent
from tunnelmgr.errors import UnreachableError
from tunnelmgr.trust.certificate import is_certificate, parse
from tunnelmgr.tunnel.scan import shown_certificate, shown_key

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
    return sshd_at_work(Sshd((host, certificate), accepts))  # type: ignore[arg-type]  # asyncssh takes the pair


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plain_key_of_every_type_is_shown(key: asyncssh.SSHKey, kind: str) -> None:
    """As `type base64`, and nothing is offered."""
    async with sshd_at_work(Sshd(generate(kind), key)) as sshd:
        shown = await shown_key(sshd.agent(), 5)

    assert shown == sshd.host_key
    assert (sshd.logins_begun, sshd.users, sshd.offered) == (0, [], [])


async def test_a_key_of_a_certain_type_is_asked_for(key: asyncssh.SSHKey) -> None:
    """An agent shows the key of the wanted type, not the one that it would prefer; without one it shows nothing."""
    async with sshd_at_work(Sshd(generate("ecdsa-sha2-nistp256"), key)) as sshd:
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

    async with tcp_at_work(silent) as at:
        with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
            await shown_certificate(replace(sshd.agent(), port=at.port), 0.2)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"\xff" * 4096])
async def test_what_is_no_ssh_server_shows_nothing(sshd: Sshd, said: bytes) -> None:
    """Another service on the port."""

    async def odd(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with tcp_at_work(odd) as at:
        agent: Agent = replace(sshd.agent(), port=at.port)
        with pytest.raises(UnreachableError):
            await shown_key(agent, 2)
