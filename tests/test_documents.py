"""The documents name what exists: folders, functions, log events, and a plug-in example that works."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tunnelmgr"
DOCUMENT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
HOP = re.compile(r"`(?P<file>[\w/]+\.py):(?P<name>\w+(?:\.\w+)*)`")
PATHS = ("From source to tunnel", "From channel to registry")


def section(title: str) -> str:
    """Return the text below a heading, down to the next heading."""
    (body,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    return str(body)


def hops(text: str) -> list[tuple[str, str]]:
    """Return the pairs of file and qualified name, written as `folder/file.py:Class.method`."""
    return [(found["file"], found["name"]) for found in HOP.finditer(text)]


def definitions(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Return the qualified names of all functions, classes and methods."""
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names |= {f"{prefix}{node.name}"}
        if isinstance(node, ast.ClassDef):
            names |= definitions(node.body, f"{prefix}{node.name}.")
    return names


@pytest.mark.parametrize(("file", "name"), sorted(set(hops(DOCUMENT))))
def test_each_function_named_in_the_document_exists(file: str, name: str) -> None:
    """`file:function` in docs/architecture.md is a definition in that file of the package."""
    source = PACKAGE / file

    assert source.is_file()
    assert name in definitions(ast.parse(source.read_text(encoding="utf-8")).body)


@pytest.mark.parametrize("title", PATHS)
def test_each_path_is_a_list_of_hops(title: str) -> None:
    """Each numbered step of a path names at least one function, so that a reader can follow it in the code."""
    steps = re.findall(r"^\d+\. .*(?:\n   .*)*", section(title), re.MULTILINE)

    assert len(steps) > 5
    assert [step for step in steps if not hops(step)] == []


def test_each_file_named_in_the_document_exists() -> None:
    """A file of the package that the document names, with its folder, is there."""
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)[`:]", DOCUMENT))

    assert sorted(file for file in named if not (PACKAGE / file).is_file() and not (ROOT / file).is_file()) == []


def test_the_folder_picture_is_complete() -> None:
    """Each folder and each top-level file of the package has its line in the section on folders."""
    entries = [entry for entry in PACKAGE.iterdir() if not entry.name.startswith(("_", ".", "py.typed"))]
    names = {f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries}
    shown = set(re.findall(r"^ +([\w.]+(?:\.py|/)) ", section("Folders"), re.MULTILINE))

    assert sorted(names - shown) == []
    assert sorted(name for name in shown - names if not (ROOT / name).exists()) == []


def test_each_log_event_is_documented() -> None:
    """The table in docs/operations.md lists exactly the events that the package logs above the level debug."""
    logged = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="info" | "warning" | "error" | "exception"),
                    args=[ast.Constant(value=str(event)), *_],
                ):
                    logged.add(event)
    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `event` \|.*?(?=^$)", operations, re.DOTALL | re.MULTILINE)
    documented = {event for row in table.splitlines()[2:] for event in re.findall(r"`([^`]+)`", row.split(" | ")[0])}

    assert logged - documented == set()
    assert documented - logged <= {"request", "registry health changed"}  # logged through a variable


def test_the_example_of_a_source_plug_in_works(tmp_path: Path) -> None:
    """The source in CONTRIBUTING.md can be imported, and lists the agents of its file."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", contributing, re.DOTALL)
    (tmp_path / "acme_source.py").write_text(code, encoding="utf-8")
    (tmp_path / "agents.json").write_text('[{"id": "1", "name": "builder", "address": "192.0.2.7"}]', encoding="utf-8")
    acme = runpy.run_path(str(tmp_path / "acme_source.py"))

    config = acme["AcmeConfig"](name="acme", type="acme", file=tmp_path / "agents.json")
    (agent,) = acme["AcmeSource"](config).discover().agents

    assert (agent.id, agent.name, agent.addresses) == ("acme:1", "builder", ("192.0.2.7",))


def test_the_selections_of_tests_name_what_exists() -> None:
    """Each path in tests/conftest.py that selects tests for both loops, or for a serial run, exists."""
    selections = runpy.run_path(str(ROOT / "tests/conftest.py"))

    assert [path for path in (*selections["ON_BOTH_LOOPS"], *selections["SERIAL"]) if not (ROOT / path).exists()] == []
