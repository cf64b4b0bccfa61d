"""The commands of a document, so that a test runs exactly what a reader does."""

import re
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent

from lab.namespaces import Machine

ROOT = Path(__file__).parents[2]


class Document:
    """A page of docs/, whose indented blocks are commands or files."""

    def __init__(self, name: str) -> None:
        self._text = (ROOT / "docs" / name).read_text(encoding="utf-8")

    def blocks(self, heading: str) -> list[str]:
        """Return the indented blocks below a heading, up to the next one; fails if there is no such heading.

        The text of a numbered step is indented by 3, and a block in it by 7.
        """
        text = re.sub(r"```.*?```", "", self._section(heading), flags=re.DOTALL)
        text = re.sub(r"^ {3}(?= {4})", "", text, flags=re.MULTILINE)
        return [
            re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
            for block in re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", text, re.MULTILINE)
        ]

    def fenced(self, heading: str, language: str) -> list[str]:
        """Return the fenced blocks of a language below a heading."""
        return [dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", self._section(heading), re.DOTALL)]

    def _section(self, heading: str) -> str:
        (section,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", self._text, re.DOTALL | re.MULTILINE)
        return str(section)


def run_commands(
    machine: Machine, folder: Path, commands: str, environment: dict[str, str] | None = None
) -> CompletedProcess[str]:
    """Run a block of commands in a folder of a machine, up to the first that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    return machine.run(["sh", "-ec", f'cd "$0"\n{commands}', str(folder)], timeout=60, env=environment)
