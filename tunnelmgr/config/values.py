"""The types of values in the file, each with an error that says what to write instead."""

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from tunnelmgr.config.authority_files import PublicKeyFile, RevocationFile
from tunnelmgr.core.globs import check_name_glob, check_tag_glob
from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint

CREDENTIAL = "credential:"
"""The prefix of a key that systemd passes as a credential: `credential:NAME` (systemd.exec(5), LoadCredential=)."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,9})(KiB|MiB|GiB|TiB)")
_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""The units of durations in seconds."""


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write a duration such as "15s", "2m" or "500ms"')
    return float(match[1]) * UNITS[match[2]]


def _size(value: object) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write a size such as "50GiB" or "500MiB"')
    return int(match[1]) * _BYTES[match[2]]


def _size_or_none(value: object) -> int:
    is_zero = value == "0" or (isinstance(value, int) and not isinstance(value, bool) and value == 0)
    return 0 if is_zero else _size(value)


def _endpoint(value: object) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([0-9.]+)):([0-9]{1,5})", value if isinstance(value, str) else "")
    if match is None:
        raise ValueError('write a literal address and a port, such as "127.0.0.1:5000" or "[::1]:5000"')
    try:
        host = str(ip_address(match[1] or match[2]))
    except ValueError as invalid:
        raise ValueError(f"{match[1] or match[2]} is not an IP address") from invalid
    port = int(match[3])
    if not 1 <= port <= 65535:  # noqa: PLR2004 - the range of TCP ports
        # Port 0 would request any free port, and such a listener matches every channel.
        raise ValueError("the port must be from 1 to 65535")
    return Endpoint(host, port)


def _loopback(value: object) -> Endpoint:
    endpoint = _endpoint(value)
    if not is_loopback(endpoint.host):
        raise ValueError(f"{endpoint} is not loopback; an agent must not offer the registry to its network")
    return endpoint


def _absolute(value: object) -> Path:
    if isinstance(value, Path):
        value = str(value)  # a default
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("write an absolute path")
    return Path(value)


def _host_name(value: object) -> str:
    if not isinstance(value, str) or len(value) > 253 or _HOST_NAME.fullmatch(value) is None:  # noqa: PLR2004 - DNS' limit
        raise ValueError('write a host name in lower case and without a port, such as "registry-1.example"')
    return value


def _existing(value: object) -> Path:
    path = _absolute(value)
    try:
        path.stat()
    except FileNotFoundError as missing:
        raise ValueError(f"no such file: {path}") from missing
    except OSError as denied:
        raise ValueError(f"cannot access {path}: {denied.strerror}") from denied
    return path


def _globs_checked(check: Callable[[str], None]) -> AfterValidator:
    """Return a validator that applies one of the core's checks of patterns."""

    def checked(pattern: str) -> str:
        check(pattern)
        return pattern

    return AfterValidator(checked)


def _key_file(value: object) -> Path:
    if isinstance(value, str) and value.startswith(CREDENTIAL):
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ValueError("this process has no systemd credentials; add LoadCredential= to its unit")
        return _existing(f"{folder}/{value.removeprefix(CREDENTIAL)}")
    return _existing(value)


def _public_key_file(value: object) -> PublicKeyFile:
    return PublicKeyFile.read(_existing(value))


def _revocation_file(value: object) -> RevocationFile:
    return RevocationFile.read(_existing(value))


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
SizeOrNone = Annotated[int, BeforeValidator(_size_or_none)]
"""A size, or `"0"` for none."""
Target = Annotated[Endpoint, BeforeValidator(_endpoint)]
Loopback = Annotated[Endpoint, BeforeValidator(_loopback)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
HostName = Annotated[str, BeforeValidator(_host_name)]
ExistingFile = Annotated[Path, BeforeValidator(_existing), PlainSerializer(str)]
SecretPath = Annotated[Path, BeforeValidator(_key_file), PlainSerializer(str)]
PublicKeyFileRead = Annotated[PublicKeyFile, BeforeValidator(_public_key_file)]
RevocationFileRead = Annotated[RevocationFile, BeforeValidator(_revocation_file)]
TrustOrder = Annotated[list[Annotated[Method, Field(strict=False)]], Field(min_length=1)]
NameGlobs = list[Annotated[str, _globs_checked(check_name_glob)]]
TagGlobs = list[Annotated[str, _globs_checked(check_tag_glob)]]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A table of the file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
