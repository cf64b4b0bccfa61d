"""`[[audit_forward]]`: a collector that gets a copy of the audit log."""

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, ValidationInfo, field_validator, model_validator

from tunnelmgr.config.collector_url import HTTP_PORTS, collector_url
from tunnelmgr.config.values import ExistingFile, Name, SecretPath, Section

SYSLOG = "syslog+tls"
"""The scheme for syslog over TLS, RFC 5425."""
_SCHEMES = {SYSLOG: 6514, **HTTP_PORTS}


def _collector_url(url: str) -> str:
    """Check the URL of a collector of audit entries."""
    place = collector_url(url, _SCHEMES, '"syslog+tls://host:6514" or "https://host/path"')
    if place.scheme == SYSLOG and (place.path not in {"", "/"} or place.query or place.fragment):
        raise ValueError('a syslog collector has no path; write "syslog+tls://host:6514"')
    return url


class AuditForwardConfig(Section):
    """`[[audit_forward]]`: where copies of the entries go, and how the collector and this sender prove themselves."""

    name: Name
    url: Annotated[str, AfterValidator(_collector_url)]
    ca_file: ExistingFile | None = None
    token_file: SecretPath | None = None
    certificate: ExistingFile | None = None
    key: SecretPath | None = None

    @property
    def place(self) -> SplitResult:
        """The parts of the URL."""
        return urlsplit(self.url)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        place = self.place
        return place.hostname or "", place.port or _SCHEMES[place.scheme]

    @field_validator("ca_file", "token_file", "certificate", "key")
    @classmethod
    def _only_where_it_is_used(cls, value: object, before: ValidationInfo) -> object:
        scheme = urlsplit(str(before.data.get("url", ""))).scheme
        if value and before.field_name == "token_file" and scheme == SYSLOG:
            raise ValueError("syslog has no tokens; the collector can verify a certificate and its key instead")
        if value and before.field_name != "token_file" and scheme == "http":
            raise ValueError("http has no TLS; write https, or leave this out")
        return value

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> "AuditForwardConfig":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; write both or none")
        return self
