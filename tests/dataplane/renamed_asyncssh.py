"""A copy of asyncssh with a renamed attribute, as its next release may have."""

import os
import re
import shutil
from pathlib import Path

import asyncssh


def renamed(name: str, folder: Path) -> Path:
    """Copy asyncssh into a folder, with `name` renamed throughout, so that it works as before.

    Files without that name are links, so Python finds them compiled.
    """
    copy = folder / "asyncssh"
    shutil.copytree(Path(asyncssh.__file__).parent, copy, copy_function=os.symlink)
    for file in copy.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if name in text:
            file.unlink()
            file.write_text(re.sub(rf"\b{name}\b", f"{name}_renamed", text), encoding="utf-8")
    return folder
