"""Host certificates: what one says, and every reason to refuse it.

asyncssh checks a certificate's signature; the rest is ours, because it accepts what OpenSSH refuses (a certificate
without principals, or one that is signed with SHA-1) and what we will not have (one that is valid for years).
The form is that of OpenSSH's PROTOCOL.certkeys.
"""

import base64
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from tunnelmgr.core.sanitize import plain
from tunnelmgr.core.trust import fingerprint

HOST = 2
"""SSH_CERT_TYPE_HOST."""
_KEY_FIELDS = {
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,
}
SIGNATURE_ALGORITHMS = frozenset(
    {
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "rsa-sha2-512",
        "rsa-sha2-256",
    }
)
"""What an authority may sign with: CASignatureAlgorithms of ssh_config(5), to which `ssh-rsa` (SHA-1) is foreign."""
_SUFFIX = "-cert-v01@openssh.com"


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """The facts of a certificate; keys as `type base64`, times in seconds since the epoch.

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
    """A certificate authority that is believed: its public key, and what it has taken back.

    `revoked` holds fingerprints (of host keys or of the authority itself) and entries such as `serial:7`. A certificate
    may be valid for at most `ahead` seconds from now.
    """

    name: str
    key: str
    revoked: frozenset[str] = frozenset()
    ahead: float = 86400.0


def is_certificate(blob: bytes) -> bool:
    """Tell whether a public key blob is a certificate."""
    return _Reader(blob).text().endswith(_SUFFIX)


def plain_key(blob: bytes) -> str:
    """Return a public key blob as `type base64`."""
    return f"{_Reader(blob).text()} {base64.b64encode(blob).decode()}"


def parse(blob: bytes) -> HostCertificate:
    """Read a certificate; raises ValueError where it is none, or is cut off."""
    reader = _Reader(blob)
    key_type = reader.text().removesuffix(_SUFFIX)
    if key_type not in _KEY_FIELDS:
        raise ValueError(f"a certificate of unknown type {plain(key_type)!r}")
    reader.string()  # the nonce
    fields = [reader.string() for _ in range(_KEY_FIELDS[key_type])]
    key = b"".join(struct.pack(">I", len(field)) + field for field in (key_type.encode(), *fields))
    serial, kind, key_id = reader.number(8), reader.number(4), reader.text()
    principals = _Reader(reader.string()).texts()
    valid_after, valid_before = reader.number(8), reader.number(8)
    critical = _Reader(reader.string()).texts()[::2]
    reader.string()  # extensions: host certificates have none that are defined
    reader.string()  # reserved
    return HostCertificate(
        kind,
        plain_key(key),
        serial,
        key_id,
        principals,
        valid_after,
        valid_before,
        critical,
        plain_key(reader.string()),
        _Reader(reader.string()).text(),
    )


def refusal(  # noqa: PLR0911 - one return a reason
    certificate: HostCertificate, authority: Authority, now: float
) -> str | None:
    """Return why a certificate of `authority` is not good at `now`, None if it is; the principal is judged apart."""
    if certificate.kind != HOST:
        return "it is a user's certificate, not a host's"
    if certificate.signature not in SIGNATURE_ALGORITHMS:
        algorithm = plain(certificate.signature)
        return f"its certificate is signed with {algorithm!r}: sign it with rsa-sha2-512 or an Ed25519 key"
    if not certificate.principals:
        return "its certificate names no principal, so it would do for any machine"
    if certificate.critical_options:
        return f"its certificate has critical options: {plain(', '.join(certificate.critical_options))}"
    if now < certificate.valid_after:
        return f"its certificate is not valid before {_time(certificate.valid_after)}"
    if now >= certificate.valid_before:
        return f"its certificate has expired at {_time(certificate.valid_before)}"
    if certificate.valid_before > now + authority.ahead:
        return f"its certificate is valid for more than {authority.ahead / 3600:g} h from now"
    return None


def is_revoked(certificate: HostCertificate, authority: Authority) -> bool:
    """Tell whether the authority has taken the certificate, its key or its own key back."""
    names = {fingerprint(certificate.key), fingerprint(certificate.authority), f"serial:{certificate.serial}"}
    return not names.isdisjoint(authority.revoked)


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):
        return "the end of time"


class _Reader:
    """Reads RFC 4251 data types from the front of a blob."""

    def __init__(self, blob: bytes) -> None:
        self._rest = blob

    def take(self, count: int) -> bytes:
        if len(self._rest) < count:
            raise ValueError("the certificate is cut off")
        head, self._rest = self._rest[:count], self._rest[count:]
        return head

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))

    def text(self) -> str:
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError as odd:
            raise ValueError("a name in the certificate is not UTF-8") from odd

    def texts(self) -> tuple[str, ...]:
        found = []
        while self._rest:
            found.append(self.text())
        return tuple(found)
