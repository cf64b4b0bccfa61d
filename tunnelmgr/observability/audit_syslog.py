"""A collector that takes syslog messages (RFC 5424) over TLS (RFC 5425).

Syslog has no answer to a message. What confirms them is the end of the TLS session: the receiver must answer a
close_notify with its own (RFC 5425, section 4.4), and TLS gives it all messages before. So a session is closed, and
another one opened, after some thousand messages and whenever there are none. A connection that ends in any other way
confirms nothing, and the messages since the last confirmation are sent again.
"""

import json
import os
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from tunnelmgr import __version__
from tunnelmgr.config import AuditForwardConfig
from tunnelmgr.observability.audit_forward import ForwardError
from tunnelmgr.observability.audit_tail import Copied
from tunnelmgr.observability.audit_tls import tls_context
from tunnelmgr.observability.collector import connection_failure

TIMEOUT: Final = 20.0
"""Seconds for one step: the connection, the sending of a batch, the confirmation."""
INFO: Final = 13 * 8 + 6
NOTICE: Final = 13 * 8 + 5
"""The priorities: the facility 13, log audit, and the severity (RFC 5424, section 6.2.1)."""
_NOTABLE = frozenset({"request-refused", "request-malformed", "tunnel-quarantined", "audit-lost"})
_MAX_SEQUENCE_ID = 2**31 - 1
_NO_TIME = "-"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class SyslogDestination:
    """Sends to one collector."""

    def __init__(self, config: AuditForwardConfig) -> None:
        self._config = config
        self._hostname = _header(socket.gethostname(), 255)
        self._connection: ssl.SSLSocket | None = None

    def send(self, entries: Sequence[Copied]) -> bool:
        """Send entries; `confirm` confirms them."""
        frames = b"".join(_frame(_message(entry, self._hostname)) for entry in entries)
        try:
            self._connection = self._connection or self._connect()
            self._connection.sendall(frames)
        except OSError as failed:
            raise ForwardError(connection_failure(failed)) from failed
        return False

    def confirm(self) -> None:
        """Close the session, and wait until the collector has closed it too."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            _require_open(connection)
            with connection.unwrap() as plain:
                # If it closes first in this moment, without having read everything, the connection ends with a reset.
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(4096):
                    pass
                if plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise ForwardError("the collector reset the connection")
        except OSError as failed:
            raise ForwardError(
                f"the collector did not confirm by closing the session: {connection_failure(failed)}"
            ) from failed
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection at once."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def _connect(self) -> ssl.SSLSocket:
        context = tls_context(self._config)
        host, port = self._config.address
        plain = socket.create_connection((host, port), TIMEOUT)
        try:
            return context.wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise


def _require_open(connection: ssl.SSLSocket) -> None:
    """Raise ForwardError if the collector has closed the session, which confirms nothing."""
    connection.settimeout(0)
    try:
        while connection.recv(4096):
            pass  # no receiver has anything to say
    except ssl.SSLWantReadError:
        connection.settimeout(TIMEOUT)
        return
    raise ForwardError("the collector closed the session before everything was sent")


def _frame(message: bytes) -> bytes:
    """Return a message with its length before it (RFC 5425, section 4.3)."""
    return b"%d %b" % (len(message), message)


def _message(entry: Copied, hostname: str) -> bytes:
    """Return an entry as a syslog message: its header, its number as `sequenceId`, and the line of the audit log."""
    line = entry.line.rstrip(b"\n")
    facts = json.loads(line)
    code, time = str(facts.get("code", "")), str(facts.get("time", ""))
    priority = NOTICE if code in _NOTABLE else INFO
    stamp = time if _TIME.fullmatch(time) else _NO_TIME
    sequence = (entry.head.sequence - 1) % _MAX_SEQUENCE_ID + 1  # it starts at 1 again (RFC 5424, section 7.3.1)
    data = f'[meta sequenceId="{sequence}"][origin software="tunnelmgr" swVersion="{_value(__version__, 32)}"]'
    header = f"<{priority}>1 {stamp} {hostname} tunnelmgr {os.getpid()} {_header(code, 32)} {data} "
    return header.encode() + line


def _header(text: str, limit: int) -> str:
    """Return a field of the header: printable ASCII without spaces, `-` for none (RFC 5424, section 6)."""
    return re.sub(r"[^!-~]", "", text)[:limit] or "-"


def _value(text: str, limit: int) -> str:
    r"""Return the value of a parameter, in which `"`, `\` and `]` would need an escape."""
    return re.sub(r"[^ !#-\[^-~]", "", text)[:limit]
