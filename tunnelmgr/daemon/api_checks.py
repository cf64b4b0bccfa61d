"""What is wrong with the files and the address of `[api]`: for a start, and for `tunnelmgr check`."""

import socket
from collections.abc import Iterator

from tunnelmgr.config import ApiConfig, private_key_file_error
from tunnelmgr.control.remote import TlsFiles
from tunnelmgr.errors import ControlError


def tls_files(api: ApiConfig) -> TlsFiles:
    """Return the files of the server's TLS; raises ControlError for a secret that others can read."""
    for secret in (api.key, *(client.token_file for client in api.client if client.token_file)):
        if (wrong := private_key_file_error(secret)) is not None:
            raise ControlError(f"api: {wrong}")
    return TlsFiles(api.certificate, api.key, api.client_authority)


def api_problems(api: ApiConfig, *, is_running: bool) -> Iterator[str]:
    """Yield what would keep the API from starting; a daemon that runs has the address itself."""
    try:
        tls_files(api).context()
    except ControlError as wrong:
        yield str(wrong).removeprefix("api: ")
    if not is_running:
        try:
            socket.create_server((api.listen.host, api.listen.port), family=_family(api.listen.host)).close()
        except OSError as taken:
            yield f"cannot listen on {api.listen}: {taken.strerror}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
