"""What a host certificate says, read from those that the real ssh-keygen makes."""

import base64
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.keygen import Keygen
from tunnelmgr.trust.certificate import HOST, Authority, HostCertificate, is_certificate, parse, plain_key, refusal

VALID = ("-n", "ec2:i-1", "-V", "20260101000000Z:20260102000000Z", "-z", "7")
JANUARY = 1767225600
"""The first of January 2026, 00:00 UTC."""


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
    keygen: Keygen, kind: str, options: tuple[str, ...], authority: str
) -> None:
    """Each fact is what ssh-keygen was told."""
    signer = keygen.key("signer", authority)
    key = keygen.key("subject", kind, *options)
    blob = keygen.sign("subject", *VALID, authority="signer")

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


def test_several_principals_none_and_for_ever_are_read(keygen: Keygen) -> None:
    """As they stand; what they are worth is judged elsewhere."""
    several = parse(keygen.sign("host", "-n", "a,b", "-V", "always:forever"))
    none = parse(keygen.sign("host"))

    assert several.principals == ("a", "b")
    assert (several.valid_after, several.valid_before) == (0, 2**64 - 1)
    assert none.principals == ()


def test_critical_options_are_read_by_name(keygen: Keygen) -> None:
    """ssh-keygen puts them into users' certificates only."""
    blob = keygen.sign("host", "-n", "a", "-O", "force-command=/bin/true", "-O", "source-address=10.0.0.1", user=True)

    assert parse(blob).critical_options == ("force-command", "source-address")


def test_a_plain_key_is_no_certificate(keygen: Keygen) -> None:
    """And cannot be read as one."""
    blob = base64.b64decode(keygen.key("plain").split()[1])

    assert not is_certificate(blob)
    assert plain_key(blob).startswith("ssh-ed25519 ")
    with pytest.raises(ValueError, match="cut off"):
        parse(blob)


def test_a_type_that_is_not_known_is_named() -> None:
    """A certificate for a security key, or of a type yet to be invented."""
    name = b"sk-ssh-ed25519-cert-v01@openssh.com"

    with pytest.raises(ValueError, match="of unknown type 'sk-ssh-ed25519'"):
        parse(struct.pack(">I", len(name)) + name)


def test_a_certificate_cut_off_anywhere_is_refused(keygen: Keygen) -> None:
    """Up to the name of the signature's algorithm; the signature behind it is asyncssh's to check."""
    blob = keygen.sign("host", *VALID)
    facts = parse(blob)
    authority = base64.b64decode(facts.authority.split()[1])
    end = blob.index(authority) + len(authority) + 4

    for length in range(end):
        with pytest.raises(ValueError, match=r"cut off|unknown type"):
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
def test_whatever_a_stranger_sends_raises_nothing_but_value_error(blob: bytes) -> None:
    """Random bytes, and rows of random strings behind a certificate's name."""
    for read in (is_certificate, plain_key, parse):
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
        (200.0, "its certificate has expired at 1970-01-01T00:03:20+00:00"),
    ],
)
def test_validity_begins_and_ends_at_its_second(now: float, why: str | None) -> None:
    """PROTOCOL.certkeys: valid after <= now < valid before."""
    assert refusal(GOOD, AUTHORITY, now) == why


def test_a_certificate_may_not_run_on_for_longer_than_the_authority_is_given() -> None:
    """A stolen host key is of use for that long."""
    assert refusal(GOOD, Authority("images", "", ahead=99.0), 101.0) is None
    assert refusal(GOOD, Authority("images", "", ahead=99.0), 100.0) == (
        "its certificate is valid for more than 0.0275 h from now"
    )


def test_a_time_beyond_the_calendar_can_be_told() -> None:
    """Validity is a number of 64 bits."""
    late = HostCertificate(HOST, "", 1, "", ("a",), 2**63, 2**64 - 1, (), "", "ssh-ed25519")

    assert refusal(late, AUTHORITY, 100.0) == "its certificate is not valid before the end of time"
