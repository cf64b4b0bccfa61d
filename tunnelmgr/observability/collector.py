"""What all collectors have in common: who verifies them, the token for them, and errors in words."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.auth import AuthBase

from tunnelmgr import __version__
from tunnelmgr.config import private_key_file_error
from tunnelmgr.core.sanitize import sanitize


class TokenError(Exception):
    """The file of a token does not hold one."""


@dataclass(frozen=True, slots=True)
class TokenFile(AuthBase):
    """Sends the token of a file with each request, read again for each, so that a new one needs no restart."""

    file: Path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header; raises TokenError."""
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str:
        if (wrong := private_key_file_error(self.file)) is not None:
            raise TokenError(f"token_file: {wrong}")
        try:
            token = self.file.read_text(encoding="ascii", errors="replace").strip()
        except OSError as failed:
            raise TokenError(f"token_file: cannot read {self.file}: {failed.strerror}") from failed
        if not token or not (token.isascii() and token.isprintable()):
            raise TokenError(f"token_file: {self.file} does not hold one line with a token")
        return token


def prepare_session(session: requests.Session, token_file: Path | None) -> None:
    """Have a session identify this program, send the token, and use nothing that the configuration does not name."""
    session.trust_env = False  # neither a proxy nor .netrc
    session.headers["User-Agent"] = f"tunnelmgr/{__version__}"
    if token_file is not None:
        session.auth = TokenFile(token_file)


def trusted_certificates(ca_file: Path | None) -> str:
    """Return the file or the folder with the certificates that verify a collector, by default the system's."""
    system = ssl.get_default_verify_paths()
    return str(ca_file or system.cafile or system.capath or system.openssl_capath)


def connection_failure(failed: OSError) -> str:
    """Return why a connection failed, without the number of the error and the line of OpenSSL's source."""
    if isinstance(failed, ssl.SSLCertVerificationError):
        return sanitize(f"certificate verify failed: {failed.verify_message}")
    if isinstance(failed, ssl.SSLError) and failed.reason:
        return sanitize(failed.reason.lower().replace("_", " "))
    return sanitize(failed.strerror or str(failed)) or type(failed).__name__


def request_failure(failed: requests.RequestException) -> str:
    """Return the innermost reason of an error; requests wraps those of urllib3 and of the socket."""
    cause: BaseException = failed
    while (inner := getattr(cause, "reason", None) or cause.__context__) and isinstance(inner, BaseException):
        cause = inner
    return connection_failure(cause) if isinstance(cause, OSError) else sanitize(str(cause)) or type(cause).__name__
