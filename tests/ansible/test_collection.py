"""The collection: ansible-lint accepts it, an installed copy is complete, and every variable is documented."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
ROLES = sorted(folder.name for folder in (ANSIBLE / "roles").iterdir())


def run(program: str, *words: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs in a folder, with a home of its own."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "ANSIBLE_HOME": str(home / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(home / "collections"),
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def defaults(role: str) -> dict[str, object]:
    """Return the variables of a role with their defaults."""
    return dict(yaml.safe_load((ANSIBLE / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")))


def options(role: str) -> dict[str, object]:
    """Return the variables that a role's argument specification describes."""
    specification = yaml.safe_load((ANSIBLE / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    return dict(specification["argument_specs"]["main"]["options"])


@pytest.mark.timeout(300)
def test_ansible_lint_accepts_it(tmp_path: Path) -> None:
    """The strictest profile of ansible-lint has no complaint about the roles and playbooks."""
    copied = tmp_path / "collection"
    shutil.copytree(ANSIBLE, copied)  # symlinks become files, as in the built collection
    done = run("ansible-lint", "--offline", "--profile", "production", "--nocolor", folder=copied, home=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed: 0 failure(s), 0 warning(s)" in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_an_installed_collection_is_complete(tmp_path: Path) -> None:
    """The archive has the files from outside of the collection's folder, and its playbooks find the roles."""
    built = run("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), folder=ANSIBLE, home=tmp_path)
    (archive,) = tmp_path.glob("tunnelmgr-tunnelmgr-*.tar.gz")
    installed = run(
        "ansible-galaxy", "collection", "install", "--offline", str(archive), folder=tmp_path, home=tmp_path
    )
    folder = tmp_path / "collections/ansible_collections/tunnelmgr/tunnelmgr"
    tasks = {
        name: run(
            *("ansible-playbook", f"tunnelmgr.tunnelmgr.{name}", "-i", str(ANSIBLE / "inventory.example.yml")),
            "--list-tasks",
            folder=tmp_path,
            home=tmp_path,
        )
        for name in ("site", "uninstall")
    }

    assert (built.returncode, installed.returncode) == (0, 0), built.stderr + installed.stderr
    files = ("agent/files/tunnelmgr-wait", "controller/files/tunnelmgr.service", "controller/files/logrotate")
    for name in (*files, "prometheus/files/rules.yml"):
        assert (folder / "roles" / name).read_bytes() == (ANSIBLE / "roles" / name).read_bytes()
        assert not (folder / "roles" / name).is_symlink()
    for done in tasks.values():
        assert done.returncode == 0, done.stderr
    assert "controller : Validate the configuration" in tasks["site"].stdout


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_has_a_specification(role: str) -> None:
    """Ansible checks the type of each variable of a role before its first task."""
    assert set(defaults(role)) - set(options(role)) == set()


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_documented_with_its_default(role: str) -> None:
    """Each variable of a role has a row in docs/ansible.md, with its default unless that is an expression."""
    text = (ROOT / "docs/ansible.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))

    assert set(options(role)) - set(rows) == set()
    for name, default in defaults(role).items():
        if "{{" not in json.dumps(default) and default not in ("", [], {}):
            expected = default if isinstance(default, str) else json.dumps(default)
            assert rows[name] == f"`{expected}`", name
