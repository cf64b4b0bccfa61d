"""Fixtures for the tests of the configuration: functions that write and load a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.config import load
from tunnelmgr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a file; `KEYFILE` in it becomes the path of a key."""
    key = tmp_path / "id_ed25519"
    key.touch(mode=0o600)

    def written(text: str) -> Path:
        file = tmp_path / "tunnelmgr.toml"
        file.write_text(text.replace("KEYFILE", str(key)))
        return file

    return written


@pytest.fixture
def problems(write: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """Return a function that loads a text and returns its problems; `[ssh]` is added if it is missing."""

    def found(text: str) -> list[str]:
        file = write(text if "[ssh]" in text else f'{text}\n[ssh]\nkey = "KEYFILE"\n')
        with pytest.raises(ConfigError) as wrong:
            load(file)
        assert str(wrong.value) == "\n".join(f"{file}: {problem}" for problem in wrong.value.problems)
        return list(wrong.value.problems)

    return found
