"""The configuration file: TOML in, one frozen `Config` out, or every problem at once, each with its place."""

from tunnelmgr.config.keyfile import examine_key_file
from tunnelmgr.config.load import config_file, load
from tunnelmgr.config.model import (
    CIPHERS,
    DEFAULT_FILE,
    DEFAULT_SOCKET,
    AuthorityConfig,
    Config,
    ControllerConfig,
    ForwardConfig,
    GroupConfig,
    SshConfig,
)
from tunnelmgr.config.sources import Source, SourceConfig, SourceType, source_type
from tunnelmgr.config.values import Duration, ExistingFile, Name, Section, TrustOrder

__all__ = [
    "CIPHERS",
    "DEFAULT_FILE",
    "DEFAULT_SOCKET",
    "AuthorityConfig",
    "Config",
    "ControllerConfig",
    "Duration",
    "ExistingFile",
    "ForwardConfig",
    "GroupConfig",
    "Name",
    "Section",
    "Source",
    "SourceConfig",
    "SourceType",
    "SshConfig",
    "TrustOrder",
    "config_file",
    "examine_key_file",
    "load",
    "source_type",
]
