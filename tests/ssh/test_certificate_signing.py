"""Signing host certificates, as ssh-keygen reads them."""

import subprocess
from pathlib import Path

import pytest

from tunnelmgr.errors import ConfigError
from tunnelmgr.ssh.certificate_signing import HostCertificateFields, sign_host_key
from tunnelmgr.ssh.key_files import fresh_host_key, make_key

FIELDS = HostCertificateFields("ec2:i-1", 7, "images/ec2:i-1", 24.0)


def test_a_host_certificate_has_the_requested_fields(tmp_path: Path) -> None:
    """`ssh-keygen` shows the requested principal, serial and key id, and no critical options."""
    make_key(tmp_path / "ca", "authority")
    _, host = fresh_host_key("host")

    (tmp_path / "host-cert.pub").write_text(sign_host_key(tmp_path / "ca", host, FIELDS))

    shown = subprocess.run(
        ["ssh-keygen", "-L", "-f", tmp_path / "host-cert.pub"], capture_output=True, text=True, check=True, timeout=10
    ).stdout
    assert "host certificate" in shown
    assert "Serial: 7" in shown
    assert 'Key ID: "images/ec2:i-1"' in shown
    assert shown.partition("Principals:")[2].split()[0] == "ec2:i-1"
    assert "Critical Options: (none)" in shown


def test_an_invalid_host_key_or_authority_is_a_configuration_error(tmp_path: Path) -> None:
    """The error names what could not be read: the host key, or the authority's file."""
    make_key(tmp_path / "ca", "authority")

    with pytest.raises(ConfigError, match="invalid public host key"):
        sign_host_key(tmp_path / "ca", "noise", FIELDS)
    with pytest.raises(ConfigError, match="absent is not a private key"):
        sign_host_key(tmp_path / "absent", fresh_host_key("host")[1], FIELDS)
