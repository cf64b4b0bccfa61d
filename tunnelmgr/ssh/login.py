"""How the controller logs in: its user, keys and certificate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from tunnelmgr.config import CIPHERS, SshConfig, private_key_file_error
from tunnelmgr.core.host_key import key_from_blob
from tunnelmgr.errors import ConfigError, LoginKeyError
from tunnelmgr.ssh.key_files import load_key

Identity = asyncssh.SSHKey | asyncssh.SSHKeyPair | tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]
"""Credentials that can be offered to an agent."""


@dataclass(frozen=True, slots=True)
class Login:
    """The user, the keys, the ciphers, and the limit for a dial in seconds.

    `next_key` is the key to rotate to. It is offered first, so that the key that an agent accepts shows whether the
    agent is ready for the rotation. `certificate` belongs to `key`. With `agent`, the keys of that ssh-agent are used.
    """

    user: str
    key: asyncssh.SSHKey | None
    connect_timeout: float
    certificate: asyncssh.SSHCertificate | None = None
    next_key: asyncssh.SSHKey | None = None
    agent: Path | None = None
    ciphers: tuple[str, ...] = CIPHERS

    @asynccontextmanager
    async def identities(self) -> AsyncIterator[list[Identity]]:
        """Lend the credentials for one login, in order; raises LoginKeyError if there are none."""
        found: list[Identity] = [self.next_key] if self.next_key else []
        if self.key is not None:
            found.append((self.key, self.certificate) if self.certificate else self.key)
        async with AsyncExitStack() as lent:
            if self.agent is not None:
                found += await lent.enter_async_context(self._agent_keys(self.agent))
            if not found:
                # asyncssh would offer the keys in ~/.ssh.
                raise LoginKeyError("there is no login key: set ssh.key, or add a key to the ssh-agent with `ssh-add`")
            yield found

    @asynccontextmanager
    async def _agent_keys(self, socket: Path) -> AsyncIterator[list[Identity]]:
        """Lend an ssh-agent's keys, which can sign while the connection to it is open."""
        async with AsyncExitStack() as connected:
            try:
                async with asyncio.timeout(self.connect_timeout):
                    agent = await connected.enter_async_context(await asyncssh.connect_agent(str(socket)))
                    keys = [*await agent.get_keys()]
            except TimeoutError as late:
                raise LoginKeyError(f"ssh.agent: {socket} does not answer") from late
            except (OSError, ValueError) as failed:
                raise LoginKeyError(f"ssh.agent: cannot get keys from {socket}: {failed}") from failed
            yield [*keys]


def identity_fingerprint(identity: Identity) -> str:
    """Return the fingerprint of a credential; a certificate's is that of its key."""
    if isinstance(identity, tuple):
        return identity[0].get_fingerprint()
    if isinstance(identity, asyncssh.SSHKey):
        return identity.get_fingerprint()
    # Not from its `algorithm`, which becomes that of the signature once the key has signed.
    line = key_from_blob(identity.public_data)
    key = asyncssh.import_certificate(line).key if identity.has_cert else asyncssh.import_public_key(line)
    return key.get_fingerprint()


def load_login(config: SshConfig) -> Login:
    """Read the keys that the configuration names; raises ConfigError with every problem."""
    problems: list[str] = []
    key = _read(config.key, "key", problems)
    next_key = _read(config.next_key, "next_key", problems)
    certificate = None
    if config.certificate is not None:
        try:
            certificate = asyncssh.read_certificate(config.certificate)
        except (asyncssh.KeyImportError, OSError, ValueError) as invalid:
            problems.append(f"ssh.certificate: {config.certificate} is not a certificate in OpenSSH format: {invalid}")
    if problems:
        raise ConfigError(problems)
    return Login(config.user, key, config.connect_timeout, certificate, next_key, config.agent, tuple(config.ciphers))


def _read(file: Path | None, name: str, problems: list[str]) -> asyncssh.SSHKey | None:
    if file is None:
        return None
    problem = private_key_file_error(file)
    if problem is not None:
        problems.append(f"ssh.{name}: {problem}")
        return None
    try:
        return load_key(file)
    except ConfigError as invalid:
        problems.extend(problem.replace("ssh.key", f"ssh.{name}") for problem in invalid.problems)
        return None
