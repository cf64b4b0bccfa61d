"""Public keys: how one is read from a line or a blob, and its fingerprint."""

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmgr.core.host_key import (
    AUTHORITY_ALGORITHMS,
    AUTHORITY_KEY_TYPES,
    HOST_CERTIFICATE_ALGORITHMS,
    HOST_KEY_ALGORITHMS,
    algorithms_of,
    blob_of,
    fingerprint,
    key_from_blob,
    parse_key,
)
from tunnelmgr.core.trust import HostTrust, Method

GOOD = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


def encoded(kind: str, *fields: bytes) -> str:
    """Return the base64 of a blob made of these strings."""
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return base64.b64encode(blob).decode()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path, kind: str) -> None:
    """An operator can compare a fingerprint that `show` prints with the output of `ssh-keygen -l`."""
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "root@host", "-f", file], check=True, timeout=20)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", file], check=True, timeout=10, capture_output=True, text=True)
    line = file.with_suffix(".pub").read_text()

    key = parse_key(line)

    assert key == " ".join(line.split()[:2])
    assert fingerprint(key) == shown.stdout.split()[1]
    assert HostTrust(Method.PINNED, (key,)).fingerprints == (fingerprint(key),)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "unknown key type ''"),
        (f"ssh-dss {encoded('ssh-dss', b'p')}", "unknown key type 'ssh-dss'; known are ssh-ed25519, "),
        ("ssh-ed25519", "the key is missing after its type"),
        ("ssh-ed25519 AAA", "truncated or not base64"),
        ("ssh-ed25519 not-base64!", "truncated or not base64"),
        (f"ssh-ed25519 {GOOD[:-4]}", "truncated"),
        (f"ssh-ed25519 {GOOD[:4]}", "truncated"),
        (f"ssh-ed25519 {encoded('ssh-ed25519')}", "truncated"),
        (
            f"ssh-ed25519 {encoded('ssh-rsa', b'e', b'n')}",
            "the key is of type 'ssh-rsa', but its line says ssh-ed25519",
        ),
        (f"ssh-ed25519 {encoded('ssh-ed25519', b'x', b'y')}", "extra data"),
        (f"ssh-rsa {encoded('ssh-rsa', b'e')}", "truncated"),
        ("ssh-ed25519 AAAAAf8=", "not UTF-8"),
    ],
)
def test_an_incomplete_key_is_refused_with_the_reason(line: str, why: str) -> None:
    """A damaged key is an error when it is read, not a mismatch with every agent later."""
    with pytest.raises(ValueError, match=why):
        parse_key(line)


def test_the_comment_and_the_spaces_are_no_part_of_a_key() -> None:
    """Two lines with the same key are the same text after parsing."""
    assert parse_key(f"  ssh-ed25519   {GOOD}  root@host here\n") == f"ssh-ed25519 {GOOD}"


def test_two_forms_of_base64_of_one_key_are_equal() -> None:
    """Bits that base64 does not use are dropped, so that equal keys are equal texts."""
    kind = "sk-ssh-ed25519@openssh.com"
    body = encoded(kind, bytes(32), b"ssh:")
    assert body.endswith("Do=")
    loose = body.removesuffix("Do=") + "Dp="

    assert parse_key(f"{kind} {loose}", AUTHORITY_KEY_TYPES) == f"{kind} {body}"


def test_an_authority_may_have_its_key_in_a_security_key_and_a_host_may_not() -> None:
    """A key in a FIDO security key is accepted for an authority only."""
    line = f"sk-ssh-ed25519@openssh.com {encoded('sk-ssh-ed25519@openssh.com', bytes(32), b'ssh:')}"

    assert parse_key(line, AUTHORITY_KEY_TYPES) == line
    with pytest.raises(ValueError, match="unknown key type"):
        parse_key(line)


def test_a_blob_and_its_text_are_one_key() -> None:
    """`key_from_blob` and `blob_of` undo each other."""
    key = f"ssh-ed25519 {GOOD}"

    assert key_from_blob(blob_of(key)) == key


def test_no_algorithm_uses_sha_1() -> None:
    """`ssh-rsa` is a type of key, and as the name of an algorithm it means SHA-1."""
    for algorithms in (HOST_KEY_ALGORITHMS, AUTHORITY_ALGORITHMS, HOST_CERTIFICATE_ALGORITHMS):
        assert not {"ssh-rsa", "ssh-rsa-cert-v01@openssh.com", "ssh-dss"} & set(algorithms)


def test_the_algorithms_of_keys_come_best_first() -> None:
    """An RSA key can be presented by two algorithms, and a key of an unknown type by none."""
    assert algorithms_of(["ssh-rsa AAAA", "ssh-ed25519 AAAA"]) == ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
    assert algorithms_of(["ssh-dss AAAA"]) == ()


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda blob: "ssh-ed25519 " + base64.b64encode(blob).decode()))
def test_any_text_is_a_key_or_a_value_error(line: str) -> None:
    """No text of a console, a file or a client raises any other exception."""
    try:
        key = parse_key(line)
    except ValueError:
        return

    assert parse_key(key) == key
