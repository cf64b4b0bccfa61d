"""TLS to the collectors of the audit log: who verifies them, and how this sender proves itself."""

import ssl

from tunnelmgr.config import AuditForwardConfig
from tunnelmgr.core.sanitize import sanitize


def tls_context(config: AuditForwardConfig) -> ssl.SSLContext:
    """Return the context for connections to a collector; raises OSError if a file of it cannot be used."""
    context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.certificate and config.key:
        context.load_cert_chain(config.certificate, config.key)
    return context


def failure_text(failed: OSError) -> str:
    """Return why a connection failed, without the number of the error and the line of OpenSSL's source."""
    if isinstance(failed, ssl.SSLCertVerificationError):
        return sanitize(f"certificate verify failed: {failed.verify_message}")
    if isinstance(failed, ssl.SSLError) and failed.reason:
        return sanitize(failed.reason.lower().replace("_", " "))
    return sanitize(failed.strerror or str(failed)) or type(failed).__name__


def trusted_certificates(config: AuditForwardConfig) -> str:
    """Return the file or the folder with the certificates that verify a collector, by default the system's."""
    system = ssl.get_default_verify_paths()
    return str(config.ca_file or system.cafile or system.capath or system.openssl_capath)
