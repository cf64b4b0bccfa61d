"""What the agent's sshd says outside of channels: its key, its debug messages, and the end of the connection."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import asyncssh

from tunnelmgr.core.host_key import key_from_blob
from tunnelmgr.core.sanitize import error_text
from tunnelmgr.errors import ListenRefusal
from tunnelmgr.ssh.login import Identity, identity_fingerprint

EXPOSED_MESSAGE = "overridden by server GatewayPorts"
"""In sshd's debug message if it listens on every address in spite of the request (channels.c)."""
REFUSAL_MESSAGES: Final[Mapping[str, ListenRefusal]] = MappingProxyType(
    {
        "Server has disabled port forwarding": ListenRefusal.DISABLED,
        "port forwarding refused": ListenRefusal.NOT_PERMITTED,
    }
)
"""In the debug message that sshd sends before it refuses a listener (serverloop.c, channels.c)."""


class LossObserver(Protocol):
    """Is notified when a connection is lost; `tunnel/worker.py` implements it."""

    def connection_lost(self) -> None:
        """Note the loss; its reason is `SshConnection.loss`."""
        ...


class Peer(asyncssh.SSHClient):
    """Receives what the agent's sshd sends outside of channels."""

    def __init__(self, offers: list[Identity]) -> None:
        self._offers = offers
        self._offered = 0
        self.lost = asyncio.Event()
        self.observer: LossObserver | None = None
        self.reason = ""
        self.exposed = False
        self.listen_refusal = ListenRefusal.UNKNOWN
        self.presented_host_key = ""
        """The host key that does not match the evidence, as `type base64`."""

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:  # noqa: ARG002 - asyncssh's form
        """Note the debug messages that explain how sshd handled a listener."""
        if EXPOSED_MESSAGE in msg:
            self.exposed = True
        for message, refusal in REFUSAL_MESSAGES.items():
            if message in msg:
                self.listen_refusal = refusal

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """Refuse a host key that does not match the evidence, and keep it for the error message."""
        self.presented_host_key = key_from_blob(key.public_data)
        return False

    @property
    def login_key(self) -> str:
        """The fingerprint of the key that was offered last, which is the accepted one."""
        return identity_fingerprint(self._offers[self._offered])

    def public_key_auth_requested(self) -> Any:  # noqa: ANN401 - asyncssh's type of a list of keys
        """Offer the next key after the previous one was refused; asyncssh was given only the first."""
        if self._offered + 1 >= len(self._offers):
            return None
        self._offered += 1
        return [self._offers[self._offered]]

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end and its reason."""
        self.reason = error_text(exc) if exc else "the agent closed the connection"
        self.lost.set()
        if self.observer is not None:
            self.observer.connection_lost()
            self.observer = None
