"""The families of commands, each of which is imported once one of its commands is called."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest
import typer
from click.testing import Result

from tunnelmgr.cli import COMMANDS
from tunnelmgr.config import DEFAULT_FILE

Run = Callable[..., Result]


@pytest.mark.parametrize("module", sorted(set(COMMANDS.values())))
def test_each_family_has_the_commands_that_the_help_lists(module: str) -> None:
    """A command that its family lacks, or that the list lacks, could not be called."""
    family = typer.Typer()
    import_module(f"tunnelmgr.cli.{module}").register(family)

    listed = [name for name, of in COMMANDS.items() if of == module]
    assert sorted(typer.main.get_group(family).commands) == sorted(listed)


def test_status_imports_nothing_that_only_the_daemon_needs() -> None:
    """A command that asks the daemon starts without SSH and clouds, which take most of a start."""
    code = "import sys; from tunnelmgr.cli import status; print(*{'asyncssh', 'boto3', 'aiohttp'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    assert shown.stdout.split() == []


def test_the_help_names_the_default_file(run: Run) -> None:
    """The help shows the path that is read without an option."""
    assert str(DEFAULT_FILE) in run("--help").stdout
