"""The import contracts in pyproject.toml are complete."""

import re
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


def test_core_may_import_none_of_the_dependencies() -> None:
    """The contract on `core/` names every dependency of the package."""
    dependencies = {re.split(r"[^\w-]", entry)[0].replace("-", "_") for entry in PYPROJECT["project"]["dependencies"]}
    (contract,) = [one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "forbidden"]

    assert dependencies <= set(contract["forbidden_modules"])
