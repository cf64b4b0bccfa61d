"""Host certificates: their contents, read from those that the real ssh-keygen makes."""

import base64
import contextlib
import hashlib
import struct

import asyncssh
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificate, load_ssh_public_identity
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.keygen import Keygen
from tunnelmgr.core.host_key import AUTHORITY_KEY_TYPES, blob_of, is_certificate, key_from_blob, parse_key
from tunnelmgr.trust.certificate import HOST, Authority, HostCertificate, parse, refusal

VALID = ("-n", "ec2:i-1", "-V", "20260101000000Z:20260102000000Z", "-z", "7")
JANUARY = 1767225600
"""The first of January 2026, 00:00 UTC."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Keygen:
    """Keep keys for several tests: one of RSA may take a second."""
    return Keygen(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ed25519", ()),
        ("ecdsa", ("-b", "256")),
        ("ecdsa", ("-b", "384")),
        ("ecdsa", ("-b", "521")),
        ("rsa", ("-b", "2048")),
    ],
)
@pytest.mark.parametrize("authority", ["ed25519", "ecdsa", "rsa"])
def test_every_type_of_key_and_authority_is_read(
    shared: Keygen, kind: str, options: tuple[str, ...], authority: str
) -> None:
    """Every field of the certificate is what ssh-keygen was asked for."""
    name = f"subject{''.join(options)}-{kind}"
    signer = shared.key(authority, authority)
    key = shared.key(name, kind, *options)
    blob = shared.sign(name, *VALID, authority=authority)

    assert is_certificate(blob)
    assert parse(blob) == HostCertificate(
        kind=HOST,
        key=key,
        serial=7,
        key_id="test",
        principals=("ec2:i-1",),
        valid_after=JANUARY,
        valid_before=JANUARY + 86400,
        critical_options=(),
        authority=signer,
        signature={"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "rsa-sha2-512"}[authority],
    )


def test_principals_and_unlimited_validity_are_read(keygen: Keygen) -> None:
    """Reading a certificate does not judge it: several principals, none, and no end are all read."""
    several = parse(keygen.sign("host", "-n", "a,b", "-V", "always:forever"))
    none = parse(keygen.sign("host"))

    assert several.principals == ("a", "b")
    assert (several.valid_after, several.valid_before) == (0, 2**64 - 1)
    assert none.principals == ()


def test_critical_options_are_read_by_name(keygen: Keygen) -> None:
    """`critical_options` holds the names; ssh-keygen puts options into user certificates only."""
    blob = keygen.sign("host", "-n", "a", "-O", "force-command=/bin/true", "-O", "source-address=10.0.0.1", user=True)

    assert parse(blob).critical_options == ("force-command", "source-address")


def test_a_plain_key_is_not_a_certificate(keygen: Keygen) -> None:
    """`parse` refuses the blob of a plain key."""
    blob = base64.b64decode(keygen.key("plain").split()[1])

    assert not is_certificate(blob)
    assert key_from_blob(blob).startswith("ssh-ed25519 ")
    with pytest.raises(ValueError, match="truncated"):
        parse(blob)


def test_an_unknown_type_is_named() -> None:
    """The error for a certificate of a type that no host key here has repeats the type."""
    name = b"sk-ssh-ed25519-cert-v01@openssh.com"

    with pytest.raises(ValueError, match="unknown certificate type 'sk-ssh-ed25519'"):
        parse(struct.pack(">I", len(name)) + name)


def test_a_certificate_truncated_anywhere_is_refused(keygen: Keygen) -> None:
    """Every prefix is refused, up to the signature itself, which asyncssh checks."""
    blob = keygen.sign("host", *VALID)
    facts = parse(blob)
    authority = base64.b64decode(facts.authority.split()[1])
    end = blob.index(authority) + len(authority) + 4

    for length in range(end):
        with pytest.raises(ValueError, match=r"truncated|unknown certificate type"):
            parse(blob[:length])


_strings = st.binary(max_size=40).map(lambda value: struct.pack(">I", len(value)) + value)
_types = st.sampled_from(["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"]).map(
    lambda kind: struct.pack(">I", len(kind) + 21) + kind.encode() + b"-cert-v01@openssh.com"
)


@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(_types, st.lists(_strings, max_size=14)).map(lambda pair: pair[0] + b"".join(pair[1])),
    )
)
def test_any_blob_is_a_certificate_or_a_value_error(blob: bytes) -> None:
    """Random bytes, and random strings after the type of a certificate, raise no other exception."""
    for read in (is_certificate, key_from_blob, parse):
        with contextlib.suppress(ValueError):
            read(blob)


GOOD = HostCertificate(HOST, "ssh-ed25519 AAAA", 1, "id", ("a",), 100, 200, (), "ssh-ed25519 BBBB", "ssh-ed25519")
AUTHORITY = Authority("images", "ssh-ed25519 BBBB", ahead=100.0)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (99.0, "its certificate is not valid before 1970-01-01T00:01:40+00:00"),
        (100.0, None),
        (199.0, None),
        (200.0, "its certificate expired at 1970-01-01T00:03:20+00:00"),
    ],
)
def test_validity_begins_and_ends_at_its_second(now: float, why: str | None) -> None:
    """A certificate is valid if valid_after <= now < valid_before (PROTOCOL.certkeys)."""
    assert refusal(GOOD, AUTHORITY, now) == why


def test_a_certificate_may_be_valid_for_at_most_the_authoritys_maximum() -> None:
    """`max_validity` of the authority bounds how long a stolen host key can be used."""
    assert refusal(GOOD, Authority("images", "", ahead=99.0), 101.0) is None
    assert refusal(GOOD, Authority("images", "", ahead=99.0), 100.0) == (
        "its certificate is valid until 1970-01-01T00:03:20+00:00, more than 0.0275 h from now "
        "(max_validity of the authority)"
    )


def test_a_time_beyond_the_calendar_can_be_shown() -> None:
    """Times in a certificate have 64 bits, more than a date can express."""
    late = HostCertificate(HOST, "", 1, "", ("a",), 2**63, 2**64 - 1, (), "", "ssh-ed25519")

    assert refusal(late, AUTHORITY, 100.0) == "its certificate is not valid before the end of the calendar"


# --- why `cryptography` does not read certificates here ---

SECURITY_KEY = "sk-ssh-ed25519@openssh.com"


def string(value: bytes) -> bytes:
    """Return a string of RFC 4251."""
    return struct.pack(">I", len(value)) + value


def signed_by_security_key(keygen: Keygen) -> tuple[bytes, str]:
    """Return a certificate signed as a FIDO key does it (PROTOCOL.u2f), and the authority's key."""
    device = Ed25519PrivateKey.generate()
    public = device.public_key().public_bytes_raw()
    authority = string(SECURITY_KEY.encode()) + string(public) + string(b"ssh:")
    ordinary = keygen.sign("host", *VALID)
    body = ordinary[: ordinary.index(blob_of(keygen.authority().key)) - 4] + string(authority)
    flags_and_counter = struct.pack(">BI", 1, 5)
    message = hashlib.sha256(b"ssh:").digest() + flags_and_counter + hashlib.sha256(body).digest()
    signature = string(SECURITY_KEY.encode()) + string(device.sign(message)) + flags_and_counter
    return body + string(signature), key_from_blob(authority)


def test_a_certificate_of_an_authority_in_a_security_key_is_valid(keygen: Keygen) -> None:
    """OpenSSH signs host certificates with FIDO keys; asyncssh verifies the signature, and the rules accept it."""
    blob, authority = signed_by_security_key(keygen)

    certificate = parse(blob)

    asyncssh.import_certificate(key_from_blob(blob))
    assert (certificate.authority, certificate.signature) == (authority, SECURITY_KEY)
    assert refusal(certificate, Authority("fido", parse_key(authority, AUTHORITY_KEY_TYPES)), JANUARY) is None


def test_cryptography_refuses_an_authority_in_a_security_key(keygen: Keygen) -> None:
    """The first reason in the docstring of `tunnelmgr.trust.certificate` still holds."""
    blob, _ = signed_by_security_key(keygen)

    with pytest.raises((ValueError, UnsupportedAlgorithm)):
        load_ssh_public_identity(key_from_blob(blob).encode())


def test_cryptography_accepts_sha_1_and_does_not_name_the_algorithm(keygen: Keygen) -> None:
    """The second reason in the docstring of `tunnelmgr.trust.certificate` still holds."""
    authority = keygen.key("rsa", "rsa")
    blob = keygen.sign("host", *VALID, "-t", "ssh-rsa", authority="rsa")

    loaded = load_ssh_public_identity(key_from_blob(blob).encode())

    assert isinstance(loaded, SSHCertificate)
    loaded.verify_cert_signature()
    public = {name for name in dir(loaded) if "sig" in name and not name.startswith("_")}
    assert public == {"signature_key", "verify_cert_signature"}
    assert refusal(parse(blob), Authority("rsa", authority), JANUARY) == (
        "its certificate is signed with 'ssh-rsa': sign it with rsa-sha2-512 or an Ed25519 key"
    )
