"""`authority`: its files and certificates work with sshd, the daemon and ssh-keygen."""

import base64
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import Run
from tunnelmgr.cli import app
from tunnelmgr.config import AuthorityConfig, load
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.trust.certificate import Authority, is_revoked, parse, refusal


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """Make an authority `images`, and a host key."""
    folder = tmp_path / "authorities"
    assert run("authority", "create", "images", "--folder", folder).exit_code == 0
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "root@host", "-f", tmp_path / "host"]
    subprocess.run(argv, check=True, timeout=10)
    return folder


def as_configured(folder: Path) -> Authority:
    """Return the authority as the daemon reads it."""
    entry = AuthorityConfig(name="images", file=str(folder / "images.pub"), revoked=str(folder / "images.revoked"))
    return Authority(entry.name, entry.key, entry.revocations, entry.max_validity)


def test_a_new_authoritys_key_is_its_owners_alone_and_its_table_loads(run: Run, config: Path, tmp_path: Path) -> None:
    """The printed table loads as it is, and only its owner can read the authority's key."""
    folder = tmp_path / "authorities"

    made = json.loads(run("authority", "create", "images", "--folder", folder, "--json").stdout)

    config.write_text(config.read_text().replace('["tofu"]', '["authority"]') + made["config"])
    loaded = load(config)
    assert stat.S_IMODE((folder / "images").stat().st_mode) == 0o600
    assert loaded.authority[0].name == "images"
    assert loaded.authority[0].key == " ".join((folder / "images.pub").read_text().split()[:2])
    assert loaded.authority[0].revocations == frozenset()


def test_the_printed_table_has_absolute_paths(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is valid for a folder that was given relative to the working folder."""
    monkeypatch.chdir(tmp_path)

    made = json.loads(run("authority", "create", "images", "--folder", "authorities", "--json").stdout)

    assert f'file = "{tmp_path}/authorities/images.pub"' in made["config"]
    assert f'revoked = "{tmp_path}/authorities/images.revoked"' in made["config"]


def test_the_daemon_can_read_its_files_despite_a_umask(run: Run, tmp_path: Path) -> None:
    """With a umask of 077, the daemon's user can still read every file except the private key."""
    folder = tmp_path / "authorities"
    before = os.umask(0o077)
    try:
        assert run("authority", "create", "images", "--folder", folder).exit_code == 0
        assert run("authority", "create", "other", "--folder", folder).exit_code == 0
        (folder / "other.revoked").unlink()
        assert run("authority", "revoke", "other", "--serial", 1, "--folder", folder).exit_code == 0
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {
        "authorities": 0o755,
        "images": 0o600,
        "images.pub": 0o644,
        "images.revoked": 0o644,
        "other": 0o600,
        "other.pub": 0o644,
        "other.revoked": 0o644,
    }


def test_an_authority_is_never_replaced(run: Run, folder: Path) -> None:
    """`create` refuses an existing name, because every certificate of that authority would become invalid."""
    before = (folder / "images").read_bytes()

    again = run("authority", "create", "images", "--folder", folder)

    assert again.exit_code == 1
    assert "an authority is never replaced" in again.stderr
    assert (folder / "images").read_bytes() == before


def test_a_certificate_satisfies_the_daemon(run: Run, folder: Path, tmp_path: Path) -> None:
    """A certificate of `sign` is for the agent's id and valid for a day, and the daemon accepts it."""
    line = run("authority", "sign", "images", tmp_path / "host.pub", "--id", "ec2:i-1", "--folder", folder).stdout
    (tmp_path / "host-cert.pub").write_text(line)
    certificate = parse(base64.b64decode(line.split()[1]))

    shown = subprocess.run(
        ["ssh-keygen", "-L", "-f", tmp_path / "host-cert.pub"], capture_output=True, text=True, check=True, timeout=10
    )
    assert "ec2:i-1" in shown.stdout
    assert certificate.principals == ("ec2:i-1",)
    assert certificate.key == " ".join((tmp_path / "host.pub").read_text().split()[:2])
    assert refusal(certificate, as_configured(folder), time.time()) is None
    assert not is_revoked(certificate, as_configured(folder))


def test_a_host_key_can_come_from_stdin(folder: Path, tmp_path: Path) -> None:
    """`sign` reads the host key from stdin if the argument is `-`."""
    words = ["authority", "sign", "images", "-", "--id", "ec2:i-1", "--folder", str(folder)]
    public = (tmp_path / "host.pub").read_text()

    signed = CliRunner().invoke(app, words, input=public)

    assert parse(base64.b64decode(signed.stdout.split()[1])).key == " ".join(public.split()[:2])


def test_only_a_host_key_is_signed(run: Run, folder: Path, tmp_path: Path) -> None:
    """`sign` refuses a file that is missing or is not a host key."""
    (tmp_path / "noise").write_text("noise")

    for file, why in (("noise", "invalid public host key"), ("gone", "No such file")):
        refused = run("authority", "sign", "images", tmp_path / file, "--id", "ec2:i-1", "--folder", folder)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert why in refused.stderr


def test_an_authority_that_does_not_exist_signs_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    """The error says which authority is missing, and how it is made."""
    words = ("authority", "sign", "nope", tmp_path / "host.pub", "--id", "ec2:i-1", "--folder", folder)

    refused = run(*words)

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "has no authority nope; create it with `tunnelmgr authority create nope`" in " ".join(refused.stderr.split())


def test_two_certificates_have_two_serials(run: Run, folder: Path, tmp_path: Path) -> None:
    """Every certificate has a serial of its own, so that it can be revoked alone."""
    serials = []
    for _ in range(2):
        words = ("authority", "sign", "images", tmp_path / "host.pub", "--id", "ec2:i-1", "--folder", folder, "--json")
        serials.append(json.loads(run(*words).stdout)["serial"])

    assert serials[0] < serials[1]


@pytest.mark.parametrize("what", ["serial", "key", "authority"])
def test_a_revocation_takes_effect(run: Run, folder: Path, tmp_path: Path, what: str) -> None:
    """A revoked serial, host key or authority is refused by the daemon's rules."""
    words = ("authority", "sign", "images", tmp_path / "host.pub", "--id", "ec2:i-1", "--folder", folder, "--json")
    signed = json.loads(run(*words).stdout)
    certificate = parse(base64.b64decode(signed["certificate"].split()[1]))
    option = {
        "serial": ("--serial", signed["serial"]),
        "key": ("--key", tmp_path / "host.pub"),
        "authority": ("--authority",),
    }[what]

    revoked = run("authority", "revoke", "images", *option, "--folder", folder)

    assert revoked.exit_code == 0
    assert "now run: tunnelmgr reload" in revoked.stdout
    assert is_revoked(certificate, as_configured(folder))


def test_a_revocation_keeps_the_earlier_ones(run: Run, folder: Path, tmp_path: Path) -> None:
    """`revoke` adds an entry and removes none."""
    for option in (("--serial", 1), ("--serial", 2), ("--key", tmp_path / "host.pub")):
        assert run("authority", "revoke", "images", *option, "--folder", folder).exit_code == 0

    public = " ".join((tmp_path / "host.pub").read_text().split()[:2])
    assert as_configured(folder).revoked == {"serial:1", "serial:2", fingerprint(public)}


@pytest.mark.parametrize("options", [(), ("--serial", "1", "--authority")])
def test_revoke_takes_exactly_one_option(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    """`revoke` refuses no option and more than one of --serial, --key and --authority."""
    refused = run("authority", "revoke", "images", *options, "--folder", folder)

    assert refused.exit_code == 2
    assert as_configured(folder).revoked == frozenset()


def test_revoking_a_file_without_a_key_is_an_error(run: Run, folder: Path, tmp_path: Path) -> None:
    """`revoke --key` with a file that is not a key leaves the revocations unchanged."""
    (tmp_path / "noise").write_text("noise")

    assert run("authority", "revoke", "images", "--key", tmp_path / "noise", "--folder", folder).exit_code == 2
    assert run("authority", "revoke", "images", "--key", tmp_path / "gone", "--folder", folder).exit_code == 1
    assert as_configured(folder).revoked == frozenset()


def test_revoking_for_an_unknown_authority_is_an_error(run: Run, tmp_path: Path) -> None:
    """`revoke` with a misspelled authority fails and creates no file."""
    (tmp_path / "authorities").mkdir()

    refused = run("authority", "revoke", "imagse", "--serial", 1, "--folder", tmp_path / "authorities")

    assert refused.exit_code == 1
    assert list((tmp_path / "authorities").iterdir()) == []
