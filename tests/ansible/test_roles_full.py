"""What `make ansible-full` tries in addition: other ways to install, other releases, and a cluster that is upgraded.

`DEBIAN_SUITE` names another release of Debian or Ubuntu, for which the Debian package is built then too.
"""

import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from lab.images import digest_of, make_image, skopeo_copy
from lab.namespaces import Namespace
from lab.postgres import Postgres, remote_url
from lab.processes import until
from tests.ansible.fleet import Fleet
from tests.ansible.test_roles import configuration
from tunnelmgr.hooks import cloud_init

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("ANSIBLE_FULL" not in os.environ, reason="`make ansible-full` runs it"),
]

ROOT = Path(__file__).parents[2]
HOST_SUITE = platform.freedesktop_os_release()["VERSION_CODENAME"]
OTHER_PYTHON = os.environ.get("DEBIAN_SUITE", HOST_SUITE) != HOST_SUITE and "WHEELHOUSE_PYTHON" not in os.environ


def rebuilt(package: Path, folder: Path) -> Path:
    """Build a Debian package of the same version with another content."""
    root = folder / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", package, root], check=True)
    readme = root / "usr/share/doc/tunnelmgr/README.md"
    readme.write_text("another build\n")
    sums = root / "DEBIAN/md5sums"
    digest = subprocess.run(["md5sum", readme], check=True, capture_output=True, text=True).stdout.split()[0]
    sums.write_text(
        re.sub(r"^\S+(?=  usr/share/doc/tunnelmgr/README\.md$)", digest, sums.read_text(), flags=re.MULTILINE)
    )
    file = folder / package.name
    words = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, file]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return file


def test_a_rebuilt_package_of_the_same_version_is_installed(fleet: Fleet, package: Path, tmp_path: Path) -> None:
    """Builds are compared by content; check mode and the next run see that nothing is left to do."""
    machine = fleet.boot("registry-1", "10.77.0.10", "controllers")
    fleet.variables = {"controller_deb": str(package), "controller_config": configuration()}
    fleet.play()
    fleet.variables["controller_deb"] = str(rebuilt(package, tmp_path))

    replaced = fleet.play()
    again = fleet.play()

    assert "registry-1: controller : Replace one of the same version by this build" in replaced.changed
    assert machine.path("/usr/share/doc/tunnelmgr/README.md").read_text() == "another build\n"
    assert again.changed == []


@pytest.mark.skipif(OTHER_PYTHON, reason="WHEELHOUSE_PYTHON does not name a Python like that of the machines")
def test_a_wheelhouse_is_installed_where_the_package_does_not_fit(
    fleet: Fleet, wheelhouse: Path, package: Path, tmp_path: Path
) -> None:
    """A package for another Python is passed over; each build gets its own environment, and the old one is removed."""
    root = tmp_path / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", package, root], check=True)
    control = root / "DEBIAN/control"
    control.write_text(re.sub(r"python3 \(>= [\d.]+~\)", "python3 (>= 3.99~)", control.read_text()))
    unfit = tmp_path / package.name
    words = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, unfit]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    machine = fleet.boot("registry-1", "10.77.0.10", "controllers")
    fleet.boot("builder-1", "10.77.0.11", "agents")
    fleet.variables = {
        "controller_deb": str(unfit),
        "controller_wheelhouse": str(wheelhouse),
        "controller_config": configuration(),
        "controller_logrotate": False,
    }

    foreseen = fleet.play("--check", "--diff")
    fleet.play()
    again, checked = fleet.play(), fleet.play("--check")
    first = machine.shell("readlink /opt/tunnelmgr/bin")
    (wheel,) = wheelhouse.glob("tunnelmgr-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")  # a zip file's end may be followed by other bytes
    fleet.play("--limit", "controllers")
    second = machine.shell("readlink /opt/tunnelmgr/bin")

    assert set(foreseen.counts("failed").values()) == {0}
    assert (again.changed, checked.changed) == ([], [])
    assert machine.shell("tunnelmgr --version").startswith("tunnelmgr 0.")
    assert not machine.path("/etc/logrotate.d/tunnelmgr").exists()
    assert first != second
    assert machine.shell("ls -d /opt/tunnelmgr/releases/*") == str(Path(second).parent)
    until(lambda: phases(fleet, "registry-1") == ["up"], "the agent is up", timeout=30.0)
    fleet.play("-e", "tunnelmgr_purge=true", playbook="uninstall.yml")
    assert machine.shell("ls -d /opt/tunnelmgr /usr/local/bin/tunnelmgr /etc/tunnelmgr 2>/dev/null || true") == ""


def test_the_user_data_has_sshd_read_its_settings(fleet: Fleet) -> None:
    """The last command of `hook cloud-init` succeeds before sshd has served anyone, as on Ubuntu, and afterwards."""
    machine = fleet.boot("builder-1", "10.77.0.11", "agents")
    reload = yaml.safe_load(cloud_init("restrict,port-forwarding ssh-ed25519 AAAA"))["runcmd"][-1]
    idle = machine.shell("systemctl is-active ssh.service || true")

    first = machine.run(["sh", "-c", reload])
    machine.shell("systemctl start ssh.service; echo 'X11Forwarding no' >/etc/ssh/sshd_config.d/10-tunnelmgr.conf")
    second = machine.run(["sh", "-c", reload])
    machine.shell("echo nonsense >/etc/ssh/sshd_config.d/10-tunnelmgr.conf")
    refused = machine.run(["sh", "-c", reload])

    assert idle == ("inactive" if os.environ.get("DEBIAN_SUITE") == "noble" else "active")
    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    assert refused.returncode != 0
    assert machine.shell("systemctl is-active ssh.service") == "active"


def phases(fleet: Fleet, name: str) -> list[str]:
    """Return the phases of the agents that a controller lists."""
    listed = json.loads(fleet.machines[name].shell("tunnelmgr list --json"))
    return [agent["phase"] for agent in listed]


def test_two_controllers_are_upgraded_one_after_the_other(fleet: Fleet, package: Path, tmp_path: Path) -> None:
    """While a setting of both registries and controllers changes, each agent has its registry without a pause."""
    machines = [fleet.boot(f"registry-{n}", f"10.77.0.{9 + n}", "controllers") for n in (1, 2)]
    agents = [fleet.boot(f"builder-{n}", f"10.77.0.{19 + n}", "agents") for n in (1, 2)]
    host = fleet.lab.machine("database", "10.77.0.5")
    assert isinstance(host, Namespace)
    with tempfile.TemporaryDirectory() as place, Postgres(reachable(Path(place)), host) as database:
        roots = tmp_path / "roots.pem"
        url = remote_url(roots, database).replace(str(roots), "/etc/ssl/certs/database.pem")
        for machine in machines:
            machine.run(["tee", "/etc/ssl/certs/database.pem"], feed=roots.read_text(), check=True)
        fleet.variables = {
            "controller_deb": str(package),
            "controller_config": configuration('name = "{{ inventory_hostname }}"', f'state = "{url}"'),
            "registry_http_secret": "one-secret-for-both-registries",
            "controller_check": False,
        }
        fleet.play()
        until(lambda: phases(fleet, "registry-1") == ["up", "up"], "both agents are up", timeout=60.0)
        watches = [watch(fleet, machine.name, tmp_path) for machine in agents]
        fleet.variables["registry_delete"] = False
        fleet.variables["controller_drop_in"] = "[Service]\nEnvironment=UPGRADED=yes\n"

        upgraded = fleet.play()

        for process in watches:
            process.terminate()
            process.wait(10)
        members = json.loads(machines[0].run(["tunnelmgr", "members", "--json"]).stdout)["members"]

    drained = [change for change in upgraded.changed if "Hand the agents over" in change]
    assert drained == ["registry-1: registry : Hand the agents over", "registry-2: registry : Hand the agents over"]
    assert [member["draining"] for member in members] == [False, False]
    for machine in agents:
        answers = (tmp_path / f"{machine.name}.answers").read_text().split()
        assert len(answers) > 20
        assert set(answers) == {"200"}


def reachable(place: Path) -> Path:
    """Return a folder in a place that the user postgres reaches."""
    place.chmod(0o755)
    return place / "postgres"


def watch(fleet: Fleet, name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Ask an agent's registry for its API repeatedly, on a new connection each time, and write down the answers."""
    options = "-s -o /dev/null -m 10 -w '%{http_code}\\n' --retry 3 --retry-connrefused --retry-delay 0"
    ask = f"curl {options} http://localhost:5000/v2/"
    loop = f"for i in $(seq 3000); do {ask}; sleep 0.2; done"
    log = folder / f"{name}.answers"
    return fleet.machines[name].network_only().popen(["sh", "-c", loop], log=log)


def test_a_pull_through_cache_runs_beside_the_registry(fleet: Fleet, tmp_path: Path) -> None:
    """The cache serves what the other registry has and hides its account; without its URL, the next run removes it."""
    machine = fleet.boot("registry-1", "10.77.0.10", "controllers")
    account = {"registry_proxy_username": "example", "registry_proxy_password": "dckr_pat_example"}
    # The registry on the same machine stands for the other one, which has to run before the cache.
    fleet.play("--tags", "registry")
    on_machine = machine.network_only()
    image = make_image(tmp_path / "image")
    assert skopeo_copy(on_machine, image, "docker://localhost:5000/library/alpine:1").returncode == 0
    fleet.variables = {"registry_proxy_remote_url": "http://127.0.0.1:5000", **account}

    installed = fleet.play("--tags", "registry", "--diff", "-vvv")
    pulled = skopeo_copy(on_machine, "docker://localhost:5501/library/alpine:1", f"oci:{tmp_path / 'pulled'}:1")
    pushed = skopeo_copy(on_machine, image, "docker://localhost:5501/library/alpine:2")
    again = fleet.play("--tags", "registry")
    found = machine.shell("grep -rlF dckr_pat_example /etc /var /root /usr/lib/systemd").split()
    mode = machine.shell("stat -c '%U:%G %a' /etc/docker/registry/proxy-environment").strip()
    environment = machine.shell("tr '\\0' '\\n' </proc/$(systemctl show -P MainPID docker-registry-proxy)/environ")
    refused = fleet.play("--tags", "registry", check=False, registry_proxy_port=5000)
    fleet.variables = {}
    removed = fleet.play("--tags", "registry")
    left = machine.shell("systemctl is-active docker-registry docker-registry-proxy || true").split()
    fleet.play("--tags", "registry", registry_proxy_remote_url="http://127.0.0.1:5000", **account)
    fleet.play("-e", "tunnelmgr_purge=true", playbook="uninstall.yml")
    remaining = machine.shell("find /etc /var/lib -path '*docker-registry*' -o -path '*docker/registry*'").split()

    assert (pulled.returncode, digest_of(None, f"oci:{tmp_path / 'pulled'}:1")) == (0, digest_of(None, image))
    assert pushed.returncode != 0
    assert again.changed == []
    assert (found, mode) == (["/etc/docker/registry/proxy-environment"], "root:root 600")
    assert 'REGISTRY_PROXY_PASSWORD="dckr_pat_example"' in environment
    assert "dckr_pat_example" not in installed.output
    assert refused.errors[0].startswith("registry_proxy_remote_url is the URL of a registry, without a path")
    assert "registry-1: registry : Stop the cache" in removed.changed
    assert left == ["active", "inactive"]
    assert [name for name in remaining if not name.startswith("/var/lib/dpkg")] == []
