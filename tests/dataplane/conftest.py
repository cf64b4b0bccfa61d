"""The data plane is tested over the same connections as the SSH adapter."""

from tests.ssh.conftest import _home, harness, host_key, ignore_resource_warnings, key, login, sshd, unverified_asyncssh

__all__ = ["_home", "harness", "host_key", "ignore_resource_warnings", "key", "login", "sshd", "unverified_asyncssh"]
