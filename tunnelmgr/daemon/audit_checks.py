"""What `tunnelmgr check` finds out about the audit log: its folder, its key, and its collectors."""

import os
import socket
from typing import Final

from tunnelmgr.config import AuditForwardConfig, ControllerConfig
from tunnelmgr.observability.audit_seal import SealingKey
from tunnelmgr.observability.audit_tls import tls_context
from tunnelmgr.observability.collector import connection_failure

_CONNECT_TIMEOUT: Final = 10.0


def sealing_key(settings: ControllerConfig) -> str:
    """Return the key that seals the audit log, as a text; raises ConfigError if it cannot be used."""
    if settings.audit_key is None:
        raise AssertionError("called only with a key")
    return f"{settings.audit_key}, ssh-ed25519 {SealingKey.load(settings.audit_key).fingerprint}"


def collector_error(config: AuditForwardConfig) -> str | None:
    """Return why a collector cannot be reached or verified, None if it can; nothing is sent to it. Blocks."""
    host, port = config.address
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT) as plain:
            if config.place.scheme != "http":
                with tls_context(config).wrap_socket(plain, server_hostname=host):
                    pass
    except OSError as failed:
        return f"{config.url}: {connection_failure(failed)}"
    if config.token_file is not None and not os.access(config.token_file, os.R_OK):
        return f"cannot read {config.token_file}"
    return None
