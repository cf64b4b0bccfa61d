"""Workers are tested against the same sshd as the SSH adapter."""

from tests.ssh.conftest import _home, desk, forgiving, host_key, key, login, sshd, unproved

__all__ = ["_home", "desk", "forgiving", "host_key", "key", "login", "sshd", "unproved"]
