"""A collector with an HTTP endpoint: each request has entries as lines of JSON, which a status 2xx confirms."""

from collections.abc import Sequence
from typing import Final

import requests

from tunnelmgr.config import AuditForwardConfig
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.observability.audit_forward import ForwardError
from tunnelmgr.observability.audit_tail import Copied
from tunnelmgr.observability.collector import TokenError, prepare_session, request_failure, trusted_certificates

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
        prepare_session(self._session, config.token_file)
        self._session.verify = trusted_certificates(config.ca_file)
        if config.certificate and config.key:
            self._session.cert = (str(config.certificate), str(config.key))
        self._session.headers["Content-Type"] = "application/x-ndjson"

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
        body = b"".join(line for _, line in entries)
        try:
            url = self._config.url
            answer = self._session.post(url, data=body, timeout=TIMEOUTS, allow_redirects=False, stream=True)
            with answer:  # whose connection is used again if its text is short
                text = sanitize(next(answer.iter_content(_TEXT), b"").decode(errors="replace"))
        except requests.RequestException as failed:
            raise ForwardError(request_failure(failed)) from failed
        except TokenError as invalid:
            raise ForwardError(str(invalid)) from invalid
        if answer.ok and answer.status_code < 300:  # noqa: PLR2004 - a redirect confirms nothing
            return True
        if answer.status_code == _TOO_LARGE:
            return False
        raise ForwardError(f"the collector answered {answer.status_code} {text}".rstrip(), _asked_wait(answer))


def _asked_wait(answer: requests.Response) -> float:
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), MAX_WAIT) if asked.isdecimal() else 0.0
