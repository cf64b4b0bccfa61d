"""The documented commands sign a release so that a changed file, and another key's signature, are found."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.acceptance


def commands(heading: str) -> list[str]:
    """Return the lines of code below a heading of docs/release.md."""
    text = (ROOT / "docs/release.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {heading}\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^    (.+)$", body, re.MULTILINE)


def run(lines: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run documented commands in a folder; the key has no passphrase, and is in that folder."""
    script = "\n".join(lines).replace("~/.minisign", ".").replace("minisign -G", "minisign -G -W")
    return subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Make a folder of files with a signature, by the documented commands."""
    for name in ("tunnelmgr_1.0_amd64.deb", "tunnelmgr-1.0.oci.tar"):
        (tmp_path / name).write_text(name)
    signing = commands("Sign")
    assert [line.split()[0] for line in signing] == ["minisign", "sha256sum", "minisign"]
    signed = run(signing, tmp_path)
    assert signed.returncode == 0, signed.stderr
    return tmp_path


def verifying() -> list[str]:
    """Return the documented commands that verify, without the installation of minisign."""
    lines = [line for line in commands("Verify") if not line.startswith("apt")]
    assert len(lines) == 2
    return lines


def test_a_signed_release_is_verified(released: Path) -> None:
    """The signature and the hashes are right, also if a part of the files is there, and the version is shown."""
    (released / "tunnelmgr-1.0.oci.tar").unlink()

    verified = run(verifying(), released)

    assert verified.returncode == 0, verified.stderr
    assert "tunnelmgr 0.2.0" in verified.stdout
    assert "tunnelmgr_1.0_amd64.deb: OK" in verified.stdout


@pytest.mark.parametrize("name", ["tunnelmgr_1.0_amd64.deb", "SHA256SUMS"])
def test_a_changed_file_is_found(released: Path, name: str) -> None:
    """A package that differs from its hash fails, and so does a list of hashes that differs from its signature."""
    with (released / name).open("a") as file:
        file.write("more\n")

    assert run(verifying(), released).returncode != 0


def test_a_signature_of_another_key_is_found(released: Path) -> None:
    """Hashes that somebody else has signed are not accepted."""
    other = released / "other"
    other.mkdir()
    (other / "SHA256SUMS").write_bytes((released / "SHA256SUMS").read_bytes())
    assert run([line for line in commands("Sign") if "sha256sum" not in line], other).returncode == 0
    (other / "SHA256SUMS.minisig").rename(released / "SHA256SUMS.minisig")

    assert run(verifying(), released).returncode != 0
