"""Write the SBOM of the container image: `image_sbom.py ROOTFS.tar VERSION SUITE FILE`.

It has the Python packages, as the SBOM in the Debian package lists them, and Debian's own packages, as dpkg lists them.
The Python of the SBOM tool runs it, because that has the schema by which the result is validated.
"""

import json
import sys
import tarfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

STATUS = "./var/lib/dpkg/status"
PYTHON_PACKAGES = "./usr/share/doc/tunnelmgr/sbom.cdx.json"


def main(rootfs: str, version: str, suite: str, file: str) -> None:
    """Write and validate the document."""
    with tarfile.open(rootfs) as archive:
        status, python_packages = (read(archive, name) for name in (STATUS, PYTHON_PACKAGES))
    document = json.loads(python_packages)
    document["components"].append(document["metadata"]["component"])
    document["components"] += debian_packages(status, suite)
    document["metadata"]["component"] = {
        "bom-ref": "image",
        "type": "container",
        "name": "tunnelmgr",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    schema = SchemaVersion.from_version(document["specVersion"])
    if invalid := JsonStrictValidator(schema).validate_str(text):
        sys.exit(f"error: the SBOM is invalid: {invalid}")
    Path(file).write_text(text, encoding="utf-8")


def read(archive: tarfile.TarFile, name: str) -> str:
    """Return a text file of an archive."""
    member = archive.extractfile(name)
    if member is None:
        sys.exit(f"error: {name} is not a file of the root file system")
    return member.read().decode()


def debian_packages(status: str, suite: str) -> Iterator[dict[str, Any]]:
    """Return dpkg's packages as components, with a package URL each (purl-spec, type `deb`)."""
    for stanza in status.strip().split("\n\n"):
        fields = HeaderParser().parsestr(stanza)
        if fields["Status"] == "install ok installed":
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&distro={suite}"
            yield {"bom-ref": purl, "type": "library", "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    main(*sys.argv[1:])
