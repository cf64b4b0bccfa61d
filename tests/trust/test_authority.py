"""`authority`: which certificates are believed, and each reason to refuse one; all made by the real ssh-keygen."""

import base64
import time
from dataclasses import replace

import pytest

from tests.trust.keygen import Keygen
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.authority import AuthorityKeys
from tunnelmgr.trust.certificate import Authority

AGENT = Agent(AgentId("ec2:i-1"), "i-1", "cloud", "ci", "builder", ("10.0.0.1",))
OURS = ("-n", "ec2:i-1", "-V", "-5m:+23h")


async def judged(shown: bytes | Exception, *authorities: Authority) -> HostTrust:
    """Let the agent show something, and return what is believed of it."""

    async def show(agent: Agent) -> bytes:
        assert agent is AGENT
        if isinstance(shown, Exception):
            raise shown
        return shown

    return await AuthorityKeys(authorities, show, time.time).trust_for(AGENT)


async def test_a_certificate_for_the_agents_id_is_evidence_of_the_very_key_in_it(keygen: Keygen) -> None:
    """And what is told of it names the authority, the serial and the key id."""
    key = keygen.key("builder")
    blob = keygen.sign("builder", *OURS, "-z", "7")

    trust = await judged(blob, keygen.authority())

    assert trust == HostTrust(Method.AUTHORITY, (key,))
    assert trust.detail == "certificate of authority ca, serial 7, key id 'test'"


async def test_one_of_several_principals_is_enough(keygen: Keygen) -> None:
    """A machine may have other names beside its id."""
    blob = keygen.sign("host", "-n", "builder.example,ec2:i-1", "-V", "-5m:+23h")

    assert (await judged(blob, keygen.authority())).method is Method.AUTHORITY


async def test_any_named_authority_may_have_signed(keygen: Keygen) -> None:
    """Two at once let one follow the other."""
    keygen.key("next")
    blob = keygen.sign("host", *OURS, authority="next")

    trust = await judged(blob, keygen.authority(), keygen.authority("next"))

    assert "authority next" in trust.detail


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-V", "-5m:+23h"), "has no principal, so it would be valid for any machine"),
        (("-n", "ec2:i-1", "-V", "+1h:+2h"), "is not valid before"),
        (("-n", "ec2:i-1", "-V", "-2h:-1h"), "expired at"),
        (("-n", "ec2:i-1", "-V", "-5m:+25h"), "more than 24 h from now"),
        (("-n", "ec2:i-1"), "more than 24 h from now"),
    ],
)
async def test_a_certificate_that_is_not_good_is_no_evidence(
    keygen: Keygen, options: tuple[str, ...], why: str
) -> None:
    """The reason is told, and the next method may be asked."""
    blob = keygen.sign("host", *options)

    with pytest.raises(HostKeyUnknownError, match=why):
        await judged(blob, keygen.authority())


async def test_a_longer_validity_is_a_matter_of_configuration(keygen: Keygen) -> None:
    """For those who sign at image time."""
    blob = keygen.sign("host", "-n", "ec2:i-1", "-V", "-5m:+25h")

    assert await judged(blob, keygen.authority(ahead=26 * 3600.0))


async def test_a_users_certificate_is_no_hosts(keygen: Keygen) -> None:
    """Though the same authority signed it, for the same name."""
    blob = keygen.sign("host", *OURS, user=True)

    with pytest.raises(HostKeyUnknownError, match="a user certificate, not a host certificate"):
        await judged(blob, keygen.authority())


async def test_a_critical_option_that_nobody_here_knows_is_refused(keygen: Keygen) -> None:
    """PROTOCOL.certkeys: what is not recognised must be refused; a host's certificate has none that is defined."""
    blob = _with_critical_option(keygen.sign("host", *OURS))

    with pytest.raises(HostKeyUnknownError, match="has critical options: verify-required"):
        await judged(blob, keygen.authority())


async def test_an_authority_that_is_not_named_is_nobody(keygen: Keygen) -> None:
    """Anybody can sign anything."""
    keygen.key("other")
    blob = keygen.sign("host", *OURS, authority="other")

    with pytest.raises(HostKeyUnknownError, match="signed by an authority that the file does not name"):
        await judged(blob, keygen.authority())


@pytest.mark.parametrize("what", ["serial", "host", "authority"])
async def test_what_was_taken_back_is_a_mismatch(keygen: Keygen, what: str) -> None:
    """A serial, a host key or the authority's own key: somebody shows what was stolen."""
    key, authority = keygen.key("builder"), keygen.authority()
    blob = keygen.sign("builder", *OURS, "-z", "7")
    entry = {"serial": "serial:7", "host": fingerprint(key), "authority": fingerprint(authority.key)}[what]

    with pytest.raises(HostKeyMismatchError, match="that authority ca has revoked"):
        await judged(blob, replace(authority, revoked=frozenset({entry})))


async def test_what_another_authority_has_taken_back_is_its_own_affair(keygen: Keygen) -> None:
    """Serials are counted by each for itself."""
    keygen.key("other")
    blob = keygen.sign("host", *OURS, "-z", "7")
    other = keygen.authority("other", revoked=frozenset({"serial:7"}))

    assert await judged(blob, other, keygen.authority())


async def test_a_certificate_for_another_agent_is_a_mismatch(keygen: Keygen) -> None:
    """It is one of our machines, at the wrong address."""
    blob = keygen.sign("host", "-n", "ec2:i-2", "-V", "-5m:+23h")

    with pytest.raises(HostKeyMismatchError, match=r"a certificate for ec2:i-2, not for ec2:i-1; look, then"):
        await judged(blob, keygen.authority())


@pytest.mark.parametrize("principal", ["ec2:i-*", "EC2:I-1", "i-1", "10.0.0.1", "builder", "*"])
async def test_a_principal_is_the_id_to_the_letter(keygen: Keygen, principal: str) -> None:
    """No pattern, no address, no name."""
    blob = keygen.sign("host", "-n", principal, "-V", "-5m:+23h")

    with pytest.raises(HostKeyMismatchError):
        await judged(blob, keygen.authority())


async def test_a_plain_key_is_no_evidence(keygen: Keygen) -> None:
    """An agent whose sshd has no HostCertificate says so here."""
    blob = base64.b64decode(keygen.key("plain").split()[1])

    with pytest.raises(HostKeyUnknownError, match="shows no host certificate"):
        await judged(blob, keygen.authority())


async def test_a_certificate_that_makes_no_sense_is_no_evidence(keygen: Keygen) -> None:
    """Nor is one that is truncated."""
    for odd in (b"", b"\x00\x00\x00\x04\xff\xff\xff\xff", keygen.sign("host", *OURS)[:100]):
        with pytest.raises(HostKeyUnknownError, match=r"truncated|not UTF-8"):
            await judged(odd, keygen.authority())


async def test_an_agent_that_cannot_be_reached_has_shown_nothing(keygen: Keygen) -> None:
    """It may come yet."""
    with pytest.raises(HostKeyUnknownError, match="cannot reach"):
        await judged(UnreachableError("10.0.0.1 port 22", "refused"), keygen.authority())


async def test_without_any_authority_nothing_is_asked() -> None:
    """The lack is the file's."""
    with pytest.raises(HostKeyUnknownError, match=r"the file names no \[\[authority\]\]"):
        await judged(AssertionError("asked"))


def _with_critical_option(blob: bytes) -> bytes:
    """Put an option into a certificate; its signature, which is not judged here, breaks by it."""
    name = b"verify-required"
    option = len(name).to_bytes(4, "big") + name + bytes(4)
    # Behind the principals stand two times of eight bytes, and then the options, which ssh-keygen left empty.
    at = blob.index(b"ec2:i-1") + len(b"ec2:i-1") + 16
    assert blob[at : at + 4] == bytes(4)
    return blob[:at] + len(option).to_bytes(4, "big") + option + blob[at + 4 :]


@pytest.mark.parametrize("algorithm", ["rsa-sha2-512", "rsa-sha2-256"])
async def test_an_rsa_authority_may_sign_with_sha_2(keygen: Keygen, algorithm: str) -> None:
    """Both are in OpenSSH's CASignatureAlgorithms."""
    keygen.key("rsa", "rsa")
    blob = keygen.sign("host", *OURS, "-t", algorithm, authority="rsa")

    assert (await judged(blob, keygen.authority("rsa"))).method is Method.AUTHORITY


async def test_a_certificate_that_is_signed_with_sha_1_is_refused(keygen: Keygen) -> None:
    """OpenSSH refuses `ssh-rsa` too, since collisions of SHA-1 can be made."""
    keygen.key("rsa", "rsa")
    blob = keygen.sign("host", *OURS, "-t", "ssh-rsa", authority="rsa")

    with pytest.raises(HostKeyUnknownError, match="signed with 'ssh-rsa': sign it with rsa-sha2-512"):
        await judged(blob, keygen.authority("rsa"))
