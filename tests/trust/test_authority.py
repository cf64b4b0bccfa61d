"""`authority`: which certificates are evidence, and each reason to refuse one; all made by the real ssh-keygen."""

import base64
import time
from dataclasses import replace

import pytest

from tests.trust.fake_scanner import FakeScanner
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
    """Return the evidence for an agent that presents this key or certificate."""
    return await AuthorityKeys(authorities, FakeScanner(certificates={AGENT: shown}), time.time).trust_for(AGENT)


async def test_a_certificate_for_the_agents_id_is_evidence_for_its_key(keygen: Keygen) -> None:
    """The detail of the evidence names the authority, the serial and the key id."""
    key = keygen.key("builder")
    blob = keygen.sign("builder", *OURS, "-z", "7")

    trust = await judged(blob, keygen.authority())

    assert trust == HostTrust(Method.AUTHORITY, (key,))
    assert trust.detail == "certificate of authority ca, serial 7, key id 'test'"


async def test_one_of_several_principals_is_enough(keygen: Keygen) -> None:
    """A certificate may name the machine's host names beside its agent id."""
    blob = keygen.sign("host", "-n", "builder.example,ec2:i-1", "-V", "-5m:+23h")

    assert (await judged(blob, keygen.authority())).method is Method.AUTHORITY


async def test_any_named_authority_may_have_signed(keygen: Keygen) -> None:
    """A source can trust two authorities while one replaces the other."""
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
async def test_an_invalid_certificate_is_not_evidence(keygen: Keygen, options: tuple[str, ...], why: str) -> None:
    """An invalid certificate is refused with its reason, so that the next method is asked."""
    blob = keygen.sign("host", *options)

    with pytest.raises(HostKeyUnknownError, match=why):
        await judged(blob, keygen.authority())


async def test_a_longer_validity_can_be_configured(keygen: Keygen) -> None:
    """`max_validity` allows certificates that are signed when an image is built."""
    blob = keygen.sign("host", "-n", "ec2:i-1", "-V", "-5m:+25h")

    assert await judged(blob, keygen.authority(ahead=26 * 3600.0))


async def test_a_user_certificate_is_not_evidence(keygen: Keygen) -> None:
    """A user certificate is refused, even if the same authority signed it for the same name."""
    blob = keygen.sign("host", *OURS, user=True)

    with pytest.raises(HostKeyUnknownError, match="a user certificate, not a host certificate"):
        await judged(blob, keygen.authority())


async def test_an_unknown_critical_option_is_refused(keygen: Keygen) -> None:
    """PROTOCOL.certkeys requires to refuse an unknown critical option, and defines none for host certificates."""
    blob = _with_critical_option(keygen.sign("host", *OURS))

    with pytest.raises(HostKeyUnknownError, match="has critical options: verify-required"):
        await judged(blob, keygen.authority())


async def test_an_authority_that_is_not_configured_is_not_trusted(keygen: Keygen) -> None:
    """A certificate proves nothing unless a configured authority signed it."""
    keygen.key("other")
    blob = keygen.sign("host", *OURS, authority="other")

    with pytest.raises(HostKeyUnknownError, match="signed by an authority that the configuration does not name"):
        await judged(blob, keygen.authority())


@pytest.mark.parametrize("what", ["serial", "host", "authority"])
async def test_a_revoked_certificate_is_a_mismatch(keygen: Keygen, what: str) -> None:
    """A revoked serial, host key or authority quarantines the agent: a stolen key may be in use."""
    key, authority = keygen.key("builder"), keygen.authority()
    blob = keygen.sign("builder", *OURS, "-z", "7")
    entry = {"serial": "serial:7", "host": fingerprint(key), "authority": fingerprint(authority.key)}[what]

    with pytest.raises(HostKeyMismatchError, match=r"which authority ca has revoked\. Replace the machine"):
        await judged(blob, replace(authority, revoked=frozenset({entry})))


async def test_a_revocation_counts_for_its_own_authority_only(keygen: Keygen) -> None:
    """A revoked serial counts only for certificates of the authority that revoked it."""
    keygen.key("other")
    blob = keygen.sign("host", *OURS, "-z", "7")
    other = keygen.authority("other", revoked=frozenset({"serial:7"}))

    assert await judged(blob, other, keygen.authority())


async def test_a_certificate_for_another_agent_is_a_mismatch(keygen: Keygen) -> None:
    """A valid certificate for another id quarantines the agent, and the message names both ids."""
    blob = keygen.sign("host", "-n", "ec2:i-2", "-V", "-5m:+23h")

    with pytest.raises(
        HostKeyMismatchError,
        match=r"a certificate for ec2:i-2, not for ec2:i-1; .*: tunnelmgr release ec2:i-1 --reason",
    ):
        await judged(blob, keygen.authority())


@pytest.mark.parametrize("principal", ["ec2:i-*", "EC2:I-1", "i-1", "10.0.0.1", "builder", "*"])
async def test_a_principal_must_equal_the_agents_id(keygen: Keygen, principal: str) -> None:
    """A principal is compared with the agent's id exactly: patterns, addresses and names do not match."""
    blob = keygen.sign("host", "-n", principal, "-V", "-5m:+23h")

    with pytest.raises(HostKeyMismatchError):
        await judged(blob, keygen.authority())


async def test_a_plain_key_is_not_evidence(keygen: Keygen) -> None:
    """An agent whose sshd has no HostCertificate presents its plain key, which is not evidence for `authority`."""
    blob = base64.b64decode(keygen.key("plain").split()[1])

    with pytest.raises(HostKeyUnknownError, match="presents no host certificate"):
        await judged(blob, keygen.authority())


async def test_a_malformed_certificate_is_not_evidence(keygen: Keygen) -> None:
    """A certificate of an unknown type or a truncated one is not evidence, and the reason says which."""
    for odd in (b"", b"\x00\x00\x00\x04\xff\xff\xff\xff", keygen.sign("host", *OURS)[:100]):
        with pytest.raises(HostKeyUnknownError, match=r"truncated|not UTF-8"):
            await judged(odd, keygen.authority())


async def test_an_unreachable_agent_has_no_evidence_yet(keygen: Keygen) -> None:
    """An agent that cannot be reached has no evidence yet, and is asked again later."""
    with pytest.raises(HostKeyUnknownError, match="cannot reach"):
        await judged(UnreachableError("10.0.0.1 port 22", "refused"), keygen.authority())


async def test_without_any_authority_nothing_is_asked() -> None:
    """Without an authority in the configuration, the agent is not asked for a certificate."""
    with pytest.raises(HostKeyUnknownError, match=r"the configuration has no \[\[authority\]\]"):
        await judged(AssertionError("asked"))


def _with_critical_option(blob: bytes) -> bytes:
    """Put an option into a certificate, which invalidates its signature; that is not checked here."""
    name = b"verify-required"
    option = len(name).to_bytes(4, "big") + name + bytes(4)
    # Behind the principals stand two times of eight bytes, and then the options, which ssh-keygen left empty.
    at = blob.index(b"ec2:i-1") + len(b"ec2:i-1") + 16
    assert blob[at : at + 4] == bytes(4)
    return blob[:at] + len(option).to_bytes(4, "big") + option + blob[at + 4 :]


@pytest.mark.parametrize("algorithm", ["rsa-sha2-512", "rsa-sha2-256"])
async def test_an_rsa_authority_may_sign_with_sha_2(keygen: Keygen, algorithm: str) -> None:
    """Both SHA-2 algorithms are in OpenSSH's CASignatureAlgorithms."""
    keygen.key("rsa", "rsa")
    blob = keygen.sign("host", *OURS, "-t", algorithm, authority="rsa")

    assert (await judged(blob, keygen.authority("rsa"))).method is Method.AUTHORITY


async def test_a_certificate_that_is_signed_with_sha_1_is_refused(keygen: Keygen) -> None:
    """The algorithm `ssh-rsa` is refused, as OpenSSH does, because collisions of SHA-1 are feasible."""
    keygen.key("rsa", "rsa")
    blob = keygen.sign("host", *OURS, "-t", "ssh-rsa", authority="rsa")

    with pytest.raises(HostKeyUnknownError, match="signed with 'ssh-rsa': sign it with rsa-sha2-512"):
        await judged(blob, keygen.authority("rsa"))
