"""The controller's own key."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from tunnelmgr.config import CIPHERS, SshConfig, examine_key_file
from tunnelmgr.core.host_key import key_from_blob
from tunnelmgr.errors import ConfigError, LoginKeyError

Identity = asyncssh.SSHKey | asyncssh.SSHKeyPair | tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]
"""What can be offered to an agent."""


def load_key(file: Path) -> asyncssh.SSHKey:
    """Read a private key; raises ConfigError naming the file."""
    try:
        return asyncssh.read_private_key(file)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as odd:
        if "passphrase" in str(odd).lower():
            raise ConfigError([f"ssh.key: {file} has a passphrase; the daemon needs one without"]) from odd
        raise ConfigError([f"ssh.key: {file} is no private key in OpenSSH's form: {odd}"]) from odd


@dataclass(frozen=True, slots=True)
class Login:
    """How the controller logs in: as whom, with what, under which ciphers, and the seconds that it waits for an agent.

    `next_key` is the one to rotate to: it is offered first, so that the key that an agent takes tells whether it is
    ready. `certificate` goes with `key`. With `agent`, the keys of that ssh-agent are used.
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
        """Lend what to offer, in order, for one login; raises LoginKeyError where there is nothing."""
        found: list[Identity] = [self.next_key] if self.next_key else []
        if self.key is not None:
            found.append((self.key, self.certificate) if self.certificate else self.key)
        async with AsyncExitStack() as lent:
            if self.agent is not None:
                found += await lent.enter_async_context(self._agent_keys(self.agent))
            if not found:
                # asyncssh would offer what lies in ~/.ssh.
                raise LoginKeyError("ssh: there is no key to log in with")
            yield found

    @asynccontextmanager
    async def _agent_keys(self, socket: Path) -> AsyncIterator[list[Identity]]:
        """Lend an ssh-agent's keys, which sign for as long as the connection to it stands."""
        async with AsyncExitStack() as connected:
            try:
                async with asyncio.timeout(self.connect_timeout):
                    agent = await connected.enter_async_context(await asyncssh.connect_agent(str(socket)))
                    keys = [*await agent.get_keys()]
            except TimeoutError as late:
                raise LoginKeyError(f"ssh.agent: {socket} does not answer") from late
            except (OSError, ValueError) as failed:
                raise LoginKeyError(f"ssh.agent: {socket} gives no keys: {failed}") from failed
            yield [*keys]


def identity_print(identity: Identity) -> str:
    """Return the fingerprint of what is offered; a certificate's is that of its key."""
    if isinstance(identity, tuple):
        return identity[0].get_fingerprint()
    if isinstance(identity, asyncssh.SSHKey):
        return identity.get_fingerprint()
    # Not by its `algorithm`: that is the signature's once it has signed.
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
        except (asyncssh.KeyImportError, OSError, ValueError) as odd:
            problems.append(f"ssh.certificate: {config.certificate} is no certificate: {odd}")
    if problems:
        raise ConfigError(problems)
    return Login(config.user, key, config.connect_timeout, certificate, next_key, config.agent, tuple(config.ciphers))


def _read(file: Path | None, name: str, problems: list[str]) -> asyncssh.SSHKey | None:
    if file is None:
        return None
    lax = examine_key_file(file)
    if lax is not None:
        problems.append(f"ssh.{name}: {lax}")
        return None
    try:
        return load_key(file)
    except ConfigError as bad:
        problems.extend(problem.replace("ssh.key", f"ssh.{name}") for problem in bad.problems)
        return None


def public_lines(config: SshConfig) -> list[str]:
    """Return the public halves that agents must accept, the next one too; raises ConfigError without a key file."""
    files = [file for file in (config.key, config.next_key) if file is not None]
    if not files:
        raise ConfigError(["ssh.key: names no file; `ssh-add -L` prints the public keys of an ssh-agent"])
    return [public_line(file) for file in files]


def make_key(file: Path, comment: str) -> None:
    """Write a fresh Ed25519 key that only its owner can read; raises FileExistsError rather than replace one."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(key.export_private_key())


def public_line(file: Path) -> str:
    """Return a private key's public half as `type base64`; raises ConfigError."""
    return " ".join(load_key(file).export_public_key("openssh").decode().split()[:2])


@dataclass(frozen=True, slots=True)
class Signing:
    """What a host certificate is to say; `hours` from now it runs out."""

    principal: str
    serial: int
    key_id: str
    hours: float


def sign_host_key(authority: Path, public_key: str, signing: Signing) -> str:
    """Return a host certificate as one line, for the file that sshd's HostCertificate names.

    Raises ConfigError where the authority's key or the host key cannot be read.
    """
    try:
        host_key = asyncssh.import_public_key(public_key)
    except asyncssh.KeyImportError as odd:
        raise ConfigError([f"this is no public host key: {odd}"]) from odd
    certificate = load_key(authority).generate_host_certificate(
        host_key,
        signing.key_id,
        serial=signing.serial,
        principals=[signing.principal],
        # A clock that is a little behind must not refuse a fresh certificate.
        valid_after="-5m",
        valid_before=f"+{int(signing.hours * 3600)}s",
    )
    return certificate.export_certificate("openssh").decode().strip()


def fresh_host_key(comment: str) -> tuple[str, str]:
    """Return a new Ed25519 host key: its private half in OpenSSH's form, and its public one as `type base64`."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    public = " ".join(key.export_public_key("openssh").decode().split()[:2])
    return key.export_private_key("openssh").decode(), public
