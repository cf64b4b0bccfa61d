"""The configuration file: TOML in, one frozen `Config` out, or every problem at once, each with its place."""

from tunnelmgr.config.api import ApiConfig
from tunnelmgr.config.audit_forward import SYSLOG, AuditForwardConfig
from tunnelmgr.config.groups import GroupConfig
from tunnelmgr.config.load import config_file, load
from tunnelmgr.config.model import (
    CIPHERS,
    DEFAULT_CACHE,
    DEFAULT_FILE,
    DEFAULT_SOCKET,
    AuthorityConfig,
    CacheConfig,
    Config,
    ControllerConfig,
    ForwardConfig,
    SshConfig,
)
from tunnelmgr.config.private_key_file import private_key_file_error
from tunnelmgr.config.sources import AgentSource, SourceConfig, SourceType, source_type
from tunnelmgr.config.tracing import TracingConfig
from tunnelmgr.config.values import Duration, ExistingFile, Name, Section, TrustOrder

__all__ = [
    "CIPHERS",
    "DEFAULT_CACHE",
    "DEFAULT_FILE",
    "DEFAULT_SOCKET",
    "SYSLOG",
    "AgentSource",
    "ApiConfig",
    "AuditForwardConfig",
    "AuthorityConfig",
    "CacheConfig",
    "Config",
    "ControllerConfig",
    "Duration",
    "ExistingFile",
    "ForwardConfig",
    "GroupConfig",
    "Name",
    "Section",
    "SourceConfig",
    "SourceType",
    "SshConfig",
    "TracingConfig",
    "TrustOrder",
    "config_file",
    "load",
    "private_key_file_error",
    "source_type",
]
