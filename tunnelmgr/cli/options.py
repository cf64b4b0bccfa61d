"""The options that commands share, and how a command finds the daemon by them."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr.cli.command import print_warning
from tunnelmgr.config import DEFAULT_FILE, DEFAULT_SOCKET, config_file
from tunnelmgr.control.client import ControlClient
from tunnelmgr.errors import ConfigError

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Configuration file [env: TUNNELMGR_CONFIG] [default: {DEFAULT_FILE}]",
        show_default=False,
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="TUNNELMGR_SOCKET",
        help="The daemon's socket [default: controller.socket of the configuration]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]
AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="An id, the beginning of one, or a name")]

_SOCKET = re.compile(r"""^[ \t]*socket\b[ \t]*(=[ \t]*(?:"([^"\\\n]+)"|'([^'\n]+)')[ \t]*(?:#.*)?)?""", re.MULTILINE)
"""The beginning of `socket = …`; the whole line, if it can be read. No other table has a key of this name."""


def chosen_file(context: typer.Context, option: Path | None) -> Path:
    """Return the configuration file: this command's option, else the one before the command, else TUNNELMGR_CONFIG."""
    return config_file(option or context.obj)


def client(context: typer.Context, option: Path | None, socket: Path | None) -> ControlClient:
    """Return a client of the daemon that the options or the configuration name.

    Only `controller.socket` is read, so that a configuration with an error elsewhere, or one that this user cannot
    read, does not hide a running daemon.
    """
    if socket is not None:
        return ControlClient(socket)
    file = chosen_file(context, option)
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, PermissionError) as unreadable:
        if file != DEFAULT_FILE:
            raise ConfigError([f"cannot read the file: {unreadable.strerror}"], file=str(file)) from unreadable
        return ControlClient(Path(DEFAULT_SOCKET))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError([f"cannot read the file: {unreadable}"], file=str(file)) from unreadable
    return ControlClient(Path(_socket_in(text, file)))


def _socket_in(text: str, file: Path) -> str:
    try:
        table = tomllib.loads(text).get("controller", {})
    except (ValueError, RecursionError) as bad:
        return _socket_despite(bad, text, file)
    return str(table.get("socket", DEFAULT_SOCKET)) if isinstance(table, dict) else DEFAULT_SOCKET


def _socket_despite(bad: Exception, text: str, file: Path) -> str:
    """Return the socket that a file with a TOML error names in a line of its own, else the default, with a warning.

    Raises ConfigError if the error is in that line.
    """
    found = _SOCKET.search(text)
    if found is not None and found[1] is None:
        problem = f"not valid TOML: {bad}; correct it, or name the daemon's socket with --socket PATH"
        raise ConfigError([problem], file=str(file)) from bad
    path = DEFAULT_SOCKET if found is None else found[2] or found[3]
    print_warning(f"{file}: not valid TOML: {bad}; asking the daemon on {path}")
    return path
