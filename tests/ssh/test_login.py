"""Login keys: files, credentials, a real ssh-agent, certificates, and two keys during a rotation."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, generate, public, running_sshd
from tests.until import until
from tunnelmgr.config import SshConfig, load
from tunnelmgr.errors import AuthenticationError, ConfigError, LoginKeyError
from tunnelmgr.ssh.client import dial
from tunnelmgr.ssh.key_files import load_key, make_key, public_line, public_lines
from tunnelmgr.ssh.login import Login, load_login


def write(file: Path, key: asyncssh.SSHKey) -> Path:
    """Write a private key with its owner's permissions."""
    file.write_bytes(key.export_private_key())
    file.chmod(0o600)
    return file


async def logged_in(sshd: Sshd, login: Login) -> str:
    """Log in, and return the fingerprint of the accepted key."""
    connection = await dial(sshd.spec(), login)
    try:
        return connection.login_key
    finally:
        connection.abort()


# --- files ---


async def test_a_key_from_a_file_logs_in(sshd: Sshd, key: asyncssh.SSHKey, tmp_path: Path) -> None:
    """A key from a file logs in, and its fingerprint is reported."""
    login = load_login(SshConfig(key=str(write(tmp_path / "id", key))))

    assert await logged_in(sshd, login) == key.get_fingerprint()


def test_a_key_with_a_passphrase_is_refused_by_name(tmp_path: Path) -> None:
    """A key with a passphrase is refused with the setting and the file, because the daemon cannot type it."""
    file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", file], check=True, timeout=10)

    with pytest.raises(ConfigError, match=rf"ssh\.key: {file} has a passphrase; the daemon needs a key without one"):
        load_login(SshConfig(key=str(file)))


@pytest.mark.parametrize("name", ["key", "next_key"])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    """A key that others can read is refused with the setting and the command that fixes it."""
    good, lax = write(tmp_path / "good", generate()), write(tmp_path / "lax", generate())
    lax.chmod(0o640)

    with pytest.raises(ConfigError, match=rf"ssh\.{name}: .*can be read by others \(mode 0640\); run `chmod 600"):
        load_login(SshConfig.model_validate({"key": str(good), name: str(lax)}))


def test_every_invalid_file_is_named_at_once(tmp_path: Path) -> None:
    """All invalid key and certificate files are reported together."""
    file = tmp_path / "noise"
    file.write_text("noise")
    file.chmod(0o600)

    with pytest.raises(ConfigError) as bad:
        load_login(SshConfig(key=str(file), next_key=str(file), certificate=str(file)))

    assert [problem.split(":")[0] for problem in bad.value.problems] == ["ssh.key", "ssh.next_key", "ssh.certificate"]


def test_a_new_key_is_private_and_replaces_no_file(tmp_path: Path) -> None:
    """A new key has mode 0600 under any umask, and an existing file is not replaced."""
    file = tmp_path / "id"
    before = os.umask(0)
    try:
        make_key(file, "comment")
    finally:
        os.umask(before)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert public_line(file) == public(load_key(file))
    with pytest.raises(FileExistsError):
        make_key(file, "comment")


def test_the_public_halves_are_those_of_both_keys(tmp_path: Path) -> None:
    """During a rotation, the public halves of both keys are returned."""
    keys = [generate(), generate()]
    files = [write(tmp_path / str(number), key) for number, key in enumerate(keys)]
    config = SshConfig(key=str(files[0]), next_key=str(files[1]))

    assert public_lines(config) == [public(key) for key in keys]
    with pytest.raises(ConfigError, match="ssh-add -L"):
        public_lines(SshConfig(agent="/run/agent.sock"))


# --- systemd's credentials ---


@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_a_credential_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """A systemd credential is read by its name, also if its group may read it (systemd.exec(5))."""
    key = generate()
    write(tmp_path / "login", key).chmod(mode)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = tmp_path / "tunnelmgr.toml"
    file.write_text('[ssh]\nkey = "credential:login"\n')

    login = load_login(load(file).ssh)

    assert login.key is not None
    assert public(login.key) == public(key)


def test_a_world_readable_credential_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential that everyone can read is refused."""
    write(tmp_path / "login", generate()).chmod(0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    with pytest.raises(ConfigError, match="can be read by others"):
        load_login(SshConfig(key="credential:login"))


def test_a_missing_credential_names_the_systemd_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemd credentials, the error names `LoadCredential=`."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    file = tmp_path / "tunnelmgr.toml"
    file.write_text('[ssh]\nkey = "credential:login"\n')

    with pytest.raises(ConfigError, match=r"ssh\.key: this process has no systemd credentials; add LoadCredential="):
        load(file)


# --- an ssh-agent ---


class Agent:
    """A real ssh-agent."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "agent.sock"
        argv = ["ssh-agent", "-D", "-a", str(self.socket)]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready(self) -> "Agent":
        """Wait until it answers."""
        for _ in range(500):
            if self.socket.exists() and self.ask("-l").returncode in {0, 1}:  # 1: it has no keys
                return self
            subprocess.run(["sleep", "0.01"], check=True, timeout=5)
        raise AssertionError("ssh-agent does not answer")

    def ask(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Run ssh-add with it."""
        env = {**os.environ, "SSH_AUTH_SOCK": str(self.socket), "SSH_ASKPASS": "/bin/false", "DISPLAY": ":0"}
        return subprocess.run(["ssh-add", *words], env=env, capture_output=True, check=False, timeout=10)

    def add(self, file: Path, *options: str) -> None:
        """Add a key, with the certificate beside it if there is one."""
        done = self.ask("-q", *options, file)
        assert done.returncode == 0, done.stderr

    def connections(self) -> int:
        """Count the open connections to it."""
        shown = subprocess.run(["ss", "-Hx"], capture_output=True, text=True, check=True, timeout=10).stdout
        return sum(str(self.socket) in line and "ESTAB" in line for line in shown.splitlines())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process id."""
        os.kill(self._process.pid, number)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(5)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Run an ssh-agent."""
    if not shutil.which("ssh-agent"):
        pytest.skip("ssh-agent is not installed")
    agent = Agent(tmp_path)
    yield agent.ready()
    agent.end()


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_the_keys_of_an_ssh_agent_log_in(
    host_key: asyncssh.SSHKey, agent: Agent, tmp_path: Path, kind: str
) -> None:
    """The keys of an ssh-agent are offered in order, and the accepted one is reported."""
    other, key = generate(), generate(kind)
    agent.add(write(tmp_path / "other", other))
    agent.add(write(tmp_path / "key", key))

    async with running_sshd(Sshd(host_key, key)) as sshd:
        taken = await logged_in(sshd, load_login(SshConfig(agent=str(agent.socket))))

    assert taken == key.get_fingerprint()
    assert public(other) in sshd.offered


async def test_no_connection_to_the_ssh_agent_is_left_behind(
    sshd: Sshd, agent: Agent, tmp_path: Path, key: asyncssh.SSHKey
) -> None:
    """Every dial closes its connections to the ssh-agent."""
    agent.add(write(tmp_path / "key", key))
    login = load_login(SshConfig(agent=str(agent.socket)))

    for _ in range(3):
        await logged_in(sshd, login)

    await until(lambda: agent.connections() == 0)


async def test_a_certificate_in_the_ssh_agent_logs_in(host_key: asyncssh.SSHKey, agent: Agent, tmp_path: Path) -> None:
    """A certificate in the ssh-agent logs in, with the fingerprint of its key."""
    authority, key = generate(), generate()
    file = write(tmp_path / "key", key)
    certificate = authority.generate_user_certificate(key, "controller", principals=["tunnel"])
    (tmp_path / "key-cert.pub").write_bytes(certificate.export_certificate())
    agent.add(file)
    agent.ask("-d", tmp_path / "key.pub")
    trusting = Sshd(host_key, generate())  # accepts no plain key of ours

    async with running_sshd(trusting, authorized_client_keys=_authority_line(authority, tmp_path)) as sshd:
        taken = await logged_in(sshd, load_login(SshConfig(agent=str(agent.socket))))

    assert taken == key.get_fingerprint()


async def test_an_ssh_agent_that_hangs_ends_the_dial_in_time(sshd: Sshd, agent: Agent) -> None:
    """A dial ends by its timeout if the ssh-agent does not answer."""
    agent.signal(signal.SIGSTOP)

    with pytest.raises(LoginKeyError, match="does not answer"):
        await logged_in(sshd, replace(load_login(SshConfig(agent=str(agent.socket))), connect_timeout=0.2))

    agent.signal(signal.SIGCONT)


async def test_a_missing_ssh_agent_is_named(sshd: Sshd, tmp_path: Path) -> None:
    """If the ssh-agent's socket does not exist, the error names it, and nothing is dialled."""
    with pytest.raises(LoginKeyError, match=r"ssh\.agent: cannot get keys from .*gone\.sock"):
        await logged_in(sshd, load_login(SshConfig(agent=str(tmp_path / "gone.sock"))))

    assert sshd.connections == []


async def test_an_empty_ssh_agent_is_a_login_key_error(sshd: Sshd, agent: Agent, tmp_path: Path) -> None:
    """With an empty ssh-agent, keys in the home directory are not offered instead."""
    home = tmp_path / ".ssh"
    home.mkdir(mode=0o700)
    write(home / "id_ed25519", sshd.accepts)

    with pytest.raises(LoginKeyError, match="there is no login key"):
        await logged_in(sshd, load_login(SshConfig(agent=str(agent.socket))))

    assert sshd.connections == []


# --- a rotation ---


async def test_the_next_key_is_offered_first(sshd: Sshd, login: Login) -> None:
    """An agent that accepts the next key is never offered the old one."""
    ready = replace(login, key=generate(), next_key=login.key)

    assert await logged_in(sshd, ready) == sshd.accepts.get_fingerprint()
    assert sshd.offered[0] == public(sshd.accepts)
    assert set(sshd.offered) == {public(sshd.accepts)}


async def test_the_old_key_is_offered_if_the_next_one_is_refused(sshd: Sshd, login: Login) -> None:
    """If the next key is refused, the old one logs in, and its fingerprint is reported."""
    following = generate()

    assert await logged_in(sshd, replace(login, next_key=following)) == sshd.accepts.get_fingerprint()
    assert sshd.offered[0] == public(following)


async def test_an_agent_that_accepts_neither_key_is_an_authentication_error(sshd: Sshd, login: Login) -> None:
    """If both keys are refused, each was offered once."""
    strangers = replace(login, key=generate(), next_key=generate())

    with pytest.raises(AuthenticationError):
        await logged_in(sshd, strangers)

    assert len(sshd.offered) == 2


async def test_without_any_key_nothing_is_dialled(sshd: Sshd) -> None:
    """Without a login key nothing is dialled, and asyncssh does not search the home directory."""
    with pytest.raises(LoginKeyError, match="there is no login key"):
        await logged_in(sshd, Login("tunnel", None, 5.0))

    assert sshd.connections == []


# --- certificates ---


async def test_a_user_certificate_logs_in(host_key: asyncssh.SSHKey, tmp_path: Path) -> None:
    """A user certificate logs in on agents that trust its authority."""
    authority, key = generate(), generate()
    certificate = authority.generate_user_certificate(key, "controller", principals=["tunnel"])
    file = tmp_path / "id-cert.pub"
    file.write_bytes(certificate.export_certificate())
    config = SshConfig(key=str(write(tmp_path / "id", key)), certificate=str(file))

    async with running_sshd(
        Sshd(host_key, generate()), authorized_client_keys=_authority_line(authority, tmp_path)
    ) as sshd:
        assert await logged_in(sshd, load_login(config)) == key.get_fingerprint()


def _authority_line(authority: asyncssh.SSHKey, folder: Path) -> str:
    """Write an authorized_keys that trusts an authority for the user."""
    file = folder / "authorities"
    file.write_text(f'cert-authority,principals="tunnel" {public(authority)}\n')
    return str(file)
