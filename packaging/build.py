"""Build the wheel, the sdist, the Debian package, the container image and their SBOMs from this checkout, reproducibly.

`make packages` runs it with the Python of an environment that has the pinned build backend. It fetches nothing but the
wheels of requirements.lock, each verified by its hash. Files that depend on a time have that of `SOURCE_DATE_EPOCH`, by
default that of the commit, so that two builds of one commit are equal byte by byte.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from container import ContainerImage
from debian import DebianPackage
from settings import ROOT, Settings, run

LOCK = ROOT / "requirements.lock"


def main() -> None:
    """Build what the command line names, into its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["wheelhouse", "debian", "image"], help="`image` is made of the built package")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder for the results [default: dist]")
    parser.add_argument("--python", default="/usr/bin/python3", help="Debian's Python [default: /usr/bin/python3]")
    parser.add_argument("--sbom-tool", type=Path, default=ROOT / "build/sbom/bin/cyclonedx-py")
    chosen = parser.parse_args()
    output = chosen.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SOURCE_DATE_EPOCH": str(source_date()), "PYTHONDONTWRITEBYTECODE": "1"}
    os.umask(0o022)
    if chosen.what == "image":
        build_image(output, chosen.sbom_tool)
    elif chosen.what == "wheelhouse":
        build_wheelhouse(output / "wheelhouse", chosen.python)
    else:
        for stale in output.glob("tunnelmgr[-_]*"):
            stale.unlink()
        version = build_python_packages(output, "sdist", "wheel")
        fetch_wheels(chosen.python, ROOT / "build/wheelhouse")
        settings = Settings(output, version, chosen.python, ROOT / "build/wheelhouse", chosen.sbom_tool)
        wheel_sbom(settings)
        DebianPackage(settings).build()
    for made in sorted(output.glob("tunnelmgr[-_]*")):
        print(made)


def build_wheelhouse(folder: Path, python: str) -> None:
    """Collect the wheels that an installation without a network needs: the pinned ones and ours."""
    shutil.rmtree(folder, ignore_errors=True)
    fetch_wheels(python, folder)
    build_python_packages(folder, "wheel")
    shutil.copy(LOCK, folder)
    print(folder)


def build_image(output: Path, sbom_tool: Path) -> None:
    """Build the container image from the package in the folder of the results."""
    wheel, package = next(output.glob("tunnelmgr-*.whl"), None), next(output.glob("tunnelmgr_*.deb"), None)
    if wheel is None or package is None:
        sys.exit(f"error: {output} has no Debian package; first run `make deb`")
    ContainerImage(output, wheel.name.split("-")[1], package, sbom_tool.with_name("python")).build()


def source_date() -> int:
    """Return the time of the results: the environment's, otherwise the commit's, otherwise the sdist's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    if (ROOT / ".git").exists():
        return int(run("git", "log", "-1", "--format=%ct"))
    return int((ROOT / "PKG-INFO").stat().st_mtime)


def build_python_packages(output: Path, *kinds: str) -> str:
    """Build the sdist and the wheel, or one of them, and return their version."""
    targets = [word for kind in kinds for word in ("-t", kind)]
    run(sys.executable, "-m", "hatchling", "build", *targets, "-d", str(output))
    (wheel,) = output.glob("tunnelmgr-*.whl")
    return wheel.name.split("-")[1]


def fetch_wheels(python: str, folder: Path) -> None:
    """Fetch the pinned wheels for a Python."""
    pip = (sys.executable, "-m", "pip", "--python", python, "download", "-q", "--disable-pip-version-check")
    run(*pip, "--require-hashes", "--only-binary=:all:", "-d", str(folder), "-r", str(LOCK))


def wheel_sbom(settings: Settings) -> None:
    """Write the SBOM of the wheel: the pinned requirements, with the hashes that the installation verifies."""
    (wheel,) = settings.output.glob("tunnelmgr-*.whl")
    settings.write_sbom("requirements", LOCK, wheel.with_name(f"{wheel.name}.cdx.json"))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"error: {' '.join(map(str, failed.cmd))} failed with status {failed.returncode}")
