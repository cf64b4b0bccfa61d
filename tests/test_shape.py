"""The product's code and its tests stay in pieces that can be read in one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tunnelmgr").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MUTABLE_ATTRIBUTES = 400, 40, 8
EXEMPT = {"tunnelmgr/dataplane/paced_reader.py:PacedReader": "three of its nine are set once, when it starts"}
"""Classes with more mutable attributes, each with its reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(kind: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Return every node of a kind in the product, with its file."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield file.relative_to(ROOT), node


def mutated(klass: ast.ClassDef) -> set[str]:
    """Return the attributes that a class's methods assign after construction."""
    found = set()
    for method in klass.body:
        if isinstance(method, Function) and method.name not in {"__init__", "__post_init__"}:
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


@pytest.mark.parametrize("file", FILES + TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_has_at_most_400_lines(file: Path) -> None:
    """No file of the product or of its tests is longer than 400 lines."""
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def test_a_function_has_at_most_40_lines() -> None:
    """No function of the product is longer than 40 lines."""
    long = [
        f"{file}:{node.name}"
        for kind in (ast.FunctionDef, ast.AsyncFunctionDef)
        for file, node in nodes(kind)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]

    assert long == []


def test_a_class_has_at_most_eight_mutable_attributes() -> None:
    """A class that changes more than eight attributes of its own is split, or its reason is stated here."""
    wide = [
        f"{file}:{node.name}"
        for file, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef)
        and len(mutated(node)) > MAX_MUTABLE_ATTRIBUTES
        and f"{file}:{node.name}" not in EXEMPT
    ]

    assert wide == []


def test_no_two_files_of_a_kind_share_a_name() -> None:
    """A file's name says what it holds, so no two files of the core, the gate, trust and the daemon share one."""
    names: dict[str, list[str]] = {}
    for file in FILES:
        folder = file.relative_to(ROOT / "tunnelmgr").parts[0]
        if file.name != "__init__.py" and folder in {"core", "gate", "trust", "tunnel", "ssh", "dataplane", "daemon"}:
            names.setdefault(file.name, []).append(str(file.relative_to(ROOT)))

    assert [files for files in names.values() if len(files) > 1] == []
