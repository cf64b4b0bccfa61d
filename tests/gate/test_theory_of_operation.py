"""The gate's theory of operation names files and deadlines that exist."""

import re
from dataclasses import fields
from pathlib import Path

from tunnelmgr import gate
from tunnelmgr.gate.timeouts import Timeouts

TEXT = gate.__doc__ or ""
PACKAGE = Path(gate.__file__).parent


def test_each_file_in_the_theory_of_operation_exists() -> None:
    """Each file that the theory of operation names is in the gate's folder, or in the package."""
    files = set(re.findall(r"[\w/]+\.py", TEXT))

    assert len(files) > 10
    assert {file for file in files if not (PACKAGE / file).exists() and not (PACKAGE.parent / file).exists()} == set()


def test_each_file_of_the_gate_is_in_its_theory_of_operation_or_only_holds_types() -> None:
    """Each file with a step of a request's path is in the theory of operation."""
    types = {"authorized_request", "caller", "concurrency_limit", "context", "manifest", "request_record"}
    types |= {"request_state", "tag_locks", "timeouts", "traffic", "__init__"}

    assert {file.stem for file in PACKAGE.glob("*.py") if file.name not in TEXT} <= types


def test_the_table_of_deadlines_has_the_defaults() -> None:
    """Each timeout is in the table of deadlines with its default."""
    defaults = {f"`{field.name}`, {field.default:g} s" for field in fields(Timeouts)}

    assert {default for default in defaults if default not in TEXT} == set()
