"""Host certificates, signed with the key of a certificate authority. `trust/certificate.py` verifies them."""

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from tunnelmgr.errors import ConfigError
from tunnelmgr.ssh.key_files import load_key


@dataclass(frozen=True, slots=True)
class HostCertificateFields:
    """The content of a host certificate, which expires in `hours`."""

    principal: str
    serial: int
    key_id: str
    hours: float


def sign_host_key(authority: Path, public_key: str, fields: HostCertificateFields) -> str:
    """Return a host certificate as one line, for the file that sshd's HostCertificate names.

    Raises ConfigError if the authority's key or the host key cannot be read.
    """
    try:
        host_key = asyncssh.import_public_key(public_key)
    except asyncssh.KeyImportError as invalid:
        raise ConfigError([f"invalid public host key: {invalid}"]) from invalid
    certificate = load_key(authority).generate_host_certificate(
        host_key,
        fields.key_id,
        serial=fields.serial,
        principals=[fields.principal],
        # A clock that is a little slow must not refuse a new certificate.
        valid_after="-5m",
        valid_before=f"+{int(fields.hours * 3600)}s",
    )
    return certificate.export_certificate("openssh").decode().strip()
