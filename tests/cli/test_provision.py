"""`provision`: user-data with a fresh host key, a label that names the seed, and the private half nowhere else."""

import base64
import json
from pathlib import Path

import asyncssh
import pytest
import yaml

from tests.cli.conftest import Run
from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.core.events import SeedAdded
from tunnelmgr.ssh.key_files import load_key, public_line

pytestmark = pytest.mark.usefixtures("socket")


def only_seed(daemon: FakeDaemon) -> SeedAdded:
    """Return the only seed that the daemon received."""
    (event,) = daemon.events
    assert isinstance(event, SeedAdded)
    return event


def provisioned(run: Run, config: Path, *options: str) -> dict[str, str]:
    """Run `provision`, and return its answer."""
    done = run("-c", config, "provision", "--json", *options)
    assert done.exit_code == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def test_the_user_data_is_yaml_that_gives_the_machine_this_key_and_no_other(
    run: Run, config: Path, daemon: FakeDaemon, tmp_path: Path
) -> None:
    """The user-data has one key pair of the right type, and the daemon has its public half."""
    made = provisioned(run, config)

    assert made["user_data"].startswith("#cloud-config\n")
    data = yaml.safe_load(made["user_data"])
    (tmp_path / "private").write_text(data["ssh_keys"]["ed25519_private"])
    assert load_key(tmp_path / "private").get_algorithm() == "ssh-ed25519"
    assert public_line(tmp_path / "private") == made["public_key"]
    assert data["ssh_keys"]["ed25519_public"].split()[:2] == made["public_key"].split()
    assert set(data["ssh_keys"]) == {"ed25519_private", "ed25519_public"}
    assert data["ssh_genkeytypes"] == ["ed25519"]
    assert data["ssh_deletekeys"] is True
    assert only_seed(daemon).seed.key == made["public_key"]


def test_the_user_data_creates_the_tunnels_user(run: Run, config: Path, tmp_path: Path) -> None:
    """The same document creates the tunnel's user with the controller's key."""
    data = yaml.safe_load(provisioned(run, config)["user_data"])

    (user,) = [entry for entry in data["users"] if entry != "default"]
    assert user["name"] == "tunnel"
    (line,) = [file["content"] for file in data["write_files"] if file["path"] == "/etc/ssh/authorized_keys.d/tunnel"]
    assert public_line(tmp_path / "id_ed25519") in line
    assert {file["path"] for file in data["write_files"]} >= {"/etc/ssh/sshd_config.d/10-tunnelmgr.conf"}


def test_the_user_data_fits_ec2(run: Run, config: Path) -> None:
    """The user-data is below 16 KB before base64, the limit of EC2 (EC2 user guide, "User data")."""
    assert len(provisioned(run, config)["user_data"]) < 16 * 1024


def test_key_only_leaves_out_the_user(run: Run, config: Path) -> None:
    """`--key-only` prints only the host key, for images that have the tunnel's user already."""
    data = yaml.safe_load(provisioned(run, config, "--key-only")["user_data"])

    assert set(data) == {"ssh_deletekeys", "ssh_genkeytypes", "ssh_keys"}


@pytest.mark.parametrize(("cloud", "name"), [("ec2", "tunnelmgr:seed"), ("hetzner", "tunnelmgr-seed")])
def test_the_label_names_the_seed_in_the_clouds_form(
    run: Run, config: Path, daemon: FakeDaemon, cloud: str, name: str
) -> None:
    """The label has the name that the cloud allows, and the seed's id."""
    made = provisioned(run, config, "--cloud", cloud)

    assert made["label"] == f"{name}={only_seed(daemon).seed.id}"


def test_each_launch_has_a_key_of_its_own(run: Run, config: Path, daemon: FakeDaemon) -> None:
    """Two calls make two keys and two seeds, so that two machines never share a key."""
    first, second = provisioned(run, config), provisioned(run, config)

    assert first["public_key"] != second["public_key"]
    assert len({event.seed.id for event in daemon.events if isinstance(event, SeedAdded)}) == 2


def test_the_user_data_alone_is_on_stdout(run: Run, config: Path) -> None:
    """The user-data can be piped into a launch, because the label is on stderr."""
    done = run("-c", config, "provision")

    assert yaml.safe_load(done.stdout)["ssh_keys"]
    assert done.stderr.startswith("launch the machine with this tag: tunnelmgr:seed=")


def test_the_private_half_is_in_the_user_data_and_nowhere_else(
    run: Run, config: Path, daemon: FakeDaemon, tmp_path: Path
) -> None:
    """The private key is neither with the daemon, nor in a file, nor on stderr."""
    done = run("-c", config, "provision")
    private = yaml.safe_load(done.stdout)["ssh_keys"]["ed25519_private"]
    secret = _secret_of(private)

    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert "PRIVATE" not in done.stderr
    assert all(word not in repr(daemon.events) for word in private.splitlines()[1:-1])
    assert not any(secret in content or private.splitlines()[2].encode() in content for content in files)


def test_without_a_daemon_nothing_is_printed(run: Run, config: Path) -> None:
    """Without a daemon that stores the public key, `provision` prints no private key."""
    config.write_text(config.read_text().replace("control.sock", "nobody.sock"))

    done = run("-c", config, "provision")

    assert done.exit_code == 3
    assert done.stdout == ""


@pytest.mark.parametrize("options", [("--hours", "0"), ("--hours", "721"), ("--cloud", "azure")])
def test_invalid_options_are_usage_errors(run: Run, config: Path, daemon: FakeDaemon, options: tuple[str, ...]) -> None:
    """Invalid options are refused before a seed is made."""
    assert run("-c", config, "provision", *options).exit_code == 2
    assert daemon.events == []


def _secret_of(private: str) -> bytes:
    """Return the 32 bytes of an Ed25519 key's secret half."""
    key = asyncssh.import_private_key(private)
    pem = key.export_private_key("pkcs8-der")
    assert isinstance(pem, bytes)
    secret = pem[-32:]
    assert secret in base64.b64decode("".join(private.splitlines()[1:-1]))
    return secret
