"""A collector with an HTTP endpoint: each request has entries as lines of JSON, which a status 2xx confirms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import requests

from tunnelmgr import __version__
from tunnelmgr.config import AuditForwardConfig, private_key_file_error
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.observability.audit_forward import ForwardError
from tunnelmgr.observability.audit_tail import Copied
from tunnelmgr.observability.audit_tls import failure_text, trusted_certificates

TIMEOUTS: Final = (10.0, 30.0)
"""Seconds to connect, and between two bytes of an answer."""
MAX_WAIT: Final = 300.0
"""Seconds; a longer `Retry-After` is not waited for."""
_TOO_LARGE: Final = 413
_TEXT: Final = 4096
"""Bytes of an answer that are read."""


class HttpDestination:
    """Posts to one URL."""

    def __init__(self, config: AuditForwardConfig) -> None:
        self._config = config
        self._limit = 2**30  # entries of a request; halved if the collector finds one too large
        self._session = requests.Session()
        self._session.trust_env = False  # neither a proxy nor .netrc, which the configuration does not name
        self._session.verify = trusted_certificates(config)
        if config.certificate and config.key:
            self._session.cert = (str(config.certificate), str(config.key))
        agent = f"tunnelmgr/{__version__}"
        self._session.headers.update({"Content-Type": "application/x-ndjson", "User-Agent": agent})

    def send(self, entries: Sequence[Copied]) -> bool:
        """Send entries; they are confirmed by the answer."""
        rest = list(entries)
        while rest:
            part = rest[: self._limit]
            if self._post(part):
                rest = rest[len(part) :]
            elif len(part) > 1:
                self._limit = len(part) // 2
            else:
                raise ForwardError("the collector refuses a single entry as too large (413)")
        return True

    def confirm(self) -> None:
        """Do nothing: `send` waits for the answer."""

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _post(self, entries: Sequence[Copied]) -> bool:
        """Send one request; return False if it is too large for the collector."""
        token = self._config.token_file
        headers = {"Authorization": f"Bearer {_read_token(token)}"} if token else {}
        body = b"".join(line for _, line in entries)
        try:
            answer = self._session.post(
                self._config.url, data=body, headers=headers, timeout=TIMEOUTS, allow_redirects=False, stream=True
            )
            with answer:  # whose connection is used again if its text is short
                text = sanitize(next(answer.iter_content(_TEXT), b"").decode(errors="replace"))
        except requests.RequestException as failed:
            raise ForwardError(_reason(failed)) from failed
        if answer.ok and answer.status_code < 300:  # noqa: PLR2004 - a redirect confirms nothing
            return True
        if answer.status_code == _TOO_LARGE:
            return False
        raise ForwardError(f"the collector answered {answer.status_code} {text}".rstrip(), _asked_wait(answer))


def _reason(failed: requests.RequestException) -> str:
    """Return the innermost reason of an error; requests wraps those of urllib3 and of the socket."""
    cause: BaseException = failed
    while (inner := getattr(cause, "reason", None) or cause.__context__) and isinstance(inner, BaseException):
        cause = inner
    return failure_text(cause) if isinstance(cause, OSError) else sanitize(str(cause)) or type(cause).__name__


def _asked_wait(answer: requests.Response) -> float:
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), MAX_WAIT) if asked.isdecimal() else 0.0


def _read_token(file: Path) -> str:
    """Read the token for each request, so that a new one needs no restart."""
    if (wrong := private_key_file_error(file)) is not None:
        raise ForwardError(f"token_file: {wrong}")
    token = file.read_text(encoding="utf-8").strip()
    if not token or not (token.isascii() and token.isprintable()):
        raise ForwardError(f"token_file: {file} does not hold one line with a token")
    return token
