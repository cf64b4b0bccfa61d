"""TLS to the collectors of the audit log: who verifies them, and how this sender proves itself."""

import ssl

from tunnelmgr.config import AuditForwardConfig


def tls_context(config: AuditForwardConfig) -> ssl.SSLContext:
    """Return the context for connections to a collector; raises OSError if a file of it cannot be used."""
    context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.certificate and config.key:
        context.load_cert_chain(config.certificate, config.key)
    return context
