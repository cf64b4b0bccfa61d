"""Host certificates: what one contains, and every reason to refuse it.

asyncssh verifies a certificate's signature during the key exchange. The rules here are ours, because asyncssh accepts
what OpenSSH refuses (a certificate without principals, or one signed with SHA-1) and what we do not want (one that is
valid for years). The format is that of OpenSSH's PROTOCOL.certkeys.

`cryptography` can read certificates too (`load_ssh_public_identity`), but it is not used here, for these reasons; a
test fails when one of the first two no longer holds:

- It refuses a certificate whose authority is a FIDO key (sk-ssh-ed25519, sk-ecdsa-sha2-nistp256): it does not expect
  the flags and the counter after the signature. OpenSSH signs host certificates with such keys.
- It verifies a signature made with SHA-1, and its public interface does not name the algorithm, so that
  CASignatureAlgorithms cannot be enforced.
- It has no rules for principals, critical options, validity or revocation: these would stay here in any case.
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from tunnelmgr.core.host_key import (
    AUTHORITY_ALGORITHMS,
    CERTIFICATE_SUFFIX,
    HOST_KEY_TYPES,
    BlobReader,
    fingerprint,
    key_from_blob,
)
from tunnelmgr.core.sanitize import sanitize

HOST = 2
"""The type of a host certificate, SSH_CERT_TYPE_HOST."""


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """The contents of a certificate; keys as `type base64`, times in seconds since the epoch.

    `signature` is the algorithm of the authority's signature.
    """

    kind: int
    key: str
    serial: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: tuple[str, ...]
    authority: str
    signature: str


@dataclass(frozen=True, slots=True)
class Authority:
    """A trusted certificate authority: its public key, and what it has revoked.

    `revoked` holds fingerprints (of host keys or of the authority itself) and entries such as `serial:7`. A certificate
    may be valid for at most `ahead` seconds from now.
    """

    name: str
    key: str
    revoked: frozenset[str] = frozenset()
    ahead: float = 86400.0


def parse(blob: bytes) -> HostCertificate:
    """Read a certificate; raises ValueError if the blob is not a certificate, or is truncated."""
    reader = BlobReader(blob)
    key_type = reader.text().removesuffix(CERTIFICATE_SUFFIX)
    if key_type not in HOST_KEY_TYPES:
        raise ValueError(f"unknown certificate type {sanitize(key_type)!r}")
    reader.string()  # the nonce
    fields = [reader.string() for _ in range(HOST_KEY_TYPES[key_type].fields)]
    key = b"".join(struct.pack(">I", len(field)) + field for field in (key_type.encode(), *fields))
    serial, kind, key_id = reader.number(8), reader.number(4), reader.text()
    principals = BlobReader(reader.string()).texts()
    valid_after, valid_before = reader.number(8), reader.number(8)
    critical = BlobReader(reader.string()).texts()[::2]
    reader.string()  # extensions: none are defined for host certificates
    reader.string()  # reserved
    return HostCertificate(
        kind,
        key_from_blob(key),
        serial,
        key_id,
        principals,
        valid_after,
        valid_before,
        critical,
        key_from_blob(reader.string()),
        BlobReader(reader.string()).text(),
    )


def refusal(  # noqa: PLR0911 - one return a reason
    certificate: HostCertificate, authority: Authority, now: float
) -> str | None:
    """Return why a certificate of `authority` is invalid at `now`, None if it is not; its principal is not checked."""
    if certificate.kind != HOST:
        return "its certificate is a user certificate, not a host certificate"
    if certificate.signature not in AUTHORITY_ALGORITHMS:
        algorithm = sanitize(certificate.signature)
        return f"its certificate is signed with {algorithm!r}: sign it with rsa-sha2-512 or an Ed25519 key"
    if not certificate.principals:
        return "its certificate has no principal, so it would be valid for any machine"
    if certificate.critical_options:
        return f"its certificate has critical options: {sanitize(', '.join(certificate.critical_options))}"
    if now < certificate.valid_after:
        return f"its certificate is not valid before {_time(certificate.valid_after)}"
    if now >= certificate.valid_before:
        return f"its certificate expired at {_time(certificate.valid_before)}"
    if certificate.valid_before > now + authority.ahead:
        return (
            f"its certificate is valid until {_time(certificate.valid_before)}, more than {authority.ahead / 3600:g} h "
            "from now (max_validity of the authority)"
        )
    return None


def is_revoked(certificate: HostCertificate, authority: Authority) -> bool:
    """Return whether the authority has revoked the certificate, its host key or its own key."""
    names = {fingerprint(certificate.key), fingerprint(certificate.authority), f"serial:{certificate.serial}"}
    return not names.isdisjoint(authority.revoked)


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):
        return "the end of the calendar"
