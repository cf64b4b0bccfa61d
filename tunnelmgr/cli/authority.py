"""`authority create`, `sign` and `revoke`: a certificate authority for host keys."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from tunnelmgr.cli.command import Command, Group, command
from tunnelmgr.cli.options import JsonOption
from tunnelmgr.cli.output import print_json, print_line
from tunnelmgr.config import DEFAULT_FILE
from tunnelmgr.core.host_key import AUTHORITY_KEY_TYPES, fingerprint, parse_key
from tunnelmgr.errors import ConfigError, ControlError
from tunnelmgr.ssh.certificate_signing import HostCertificateFields, sign_host_key
from tunnelmgr.ssh.key_files import make_key, public_line

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The authority's name")]
FolderOption = Annotated[
    Path, typer.Option("--folder", metavar="DIR", help="The folder with the files of the authorities")
]
FOLDER = DEFAULT_FILE.parent / "authorities"
READABLE = 0o644
"""The mode of files that the daemon reads as its own user, regardless of the umask of the user who runs the command."""

family = typer.Typer(
    cls=Group, no_args_is_help=True, help="Create a certificate authority for host keys, sign host keys, revoke."
)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.add_typer(family, name="authority", rich_help_panel="Agents")
    family.command(cls=Command, epilog="Example: `tunnelmgr authority create images`")(create)
    family.command(
        cls=Command, epilog="Example: `tunnelmgr authority sign images --id ec2:i-0abc ssh_host_ed25519_key.pub`"
    )(sign)
    family.command(cls=Command, epilog="Example: `tunnelmgr authority revoke images --serial 1764000000123`")(revoke)


@command
def create(name: NameArgument, folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Create an authority, and print the table for the configuration that makes the controller trust it."""
    folder = folder.absolute()  # as the table needs it
    file = folder / name
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        make_key(file, f"tunnelmgr host authority {name}")
        _public(file).write_text(f"{public_line(file)} {name}\n", encoding="utf-8")
        _revoked(file).touch()
        for shared in (_public(file), _revoked(file)):
            shared.chmod(READABLE)
    except FileExistsError as taken:
        raise ControlError(f"{file} exists already; an authority is never replaced, so choose another name") from taken
    except OSError as failed:
        raise ControlError(f"cannot write {failed.filename or file}: {failed.strerror}") from failed
    table = f'[[authority]]\nname = "{name}"\nfile = "{_public(file)}"\nrevoked = "{_revoked(file)}"\n'
    if as_json:
        print_json({"name": name, "key": str(file), "public": str(_public(file)), "config": table})
        return
    print_line(
        f"wrote  {file}  (keep it where host keys are signed; the controller needs only the .pub and .revoked files)"
    )
    typer.echo(f"\n# Add this to the configuration, and `authority` to the source's trust:\n\n{table}", nl=False)


@command
def sign(
    name: NameArgument,
    host_key: Annotated[Path, typer.Argument(metavar="HOST_KEY.pub", help="The host's public key; - for stdin")],
    id_: Annotated[str, typer.Option("--id", metavar="AGENT", help="The id of the agent, such as ec2:i-0abc")],
    hours: Annotated[float, typer.Option(metavar="HOURS", min=0.1, max=8760, help="Hours until it expires")] = 24,
    folder: FolderOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Sign a host key for one agent id, and print the certificate for sshd's HostCertificate."""
    _require_authority(folder, name)
    try:
        public = typer.get_text_stream("stdin").read() if str(host_key) == "-" else host_key.read_text(encoding="utf-8")
    except OSError as failed:
        raise ConfigError([f"cannot read {host_key}: {failed.strerror}"]) from failed
    serial = time.time_ns() // 1_000_000
    line = sign_host_key(folder / name, public, HostCertificateFields(id_, serial, f"{name}/{id_}", hours))
    if as_json:
        print_json({"certificate": line, "serial": serial, "principal": id_, "hours": hours})
    else:
        typer.echo(line)


@command
def revoke(
    name: NameArgument,
    serial: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Revoke the certificate with this serial")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="HOST_KEY.pub", help="Revoke every certificate of this host key")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--authority", help="Revoke the authority itself, with everything that it signed")
    ] = False,
    folder: FolderOption = FOLDER,
) -> None:
    """Revoke a certificate, a host key or the authority. It takes effect with `tunnelmgr reload`."""
    if [serial is not None, key is not None, everything].count(True) != 1:
        raise typer.BadParameter("give exactly one of --serial, --key and --authority")
    _require_authority(folder, name)
    try:
        entry = f"serial:{serial}" if serial is not None else _fingerprint_in(key or _public(folder / name))
        fresh = not _revoked(folder / name).exists()
        with _revoked(folder / name).open("a", encoding="utf-8") as out:
            if fresh:
                os.fchmod(out.fileno(), READABLE)
            out.write(entry + "\n")
            out.flush()
            os.fsync(out.fileno())
    except OSError as failed:
        raise ControlError(f"cannot write {failed.filename}: {failed.strerror}") from failed
    print_line(f"revoked  {entry}; now run: tunnelmgr reload")


def _require_authority(folder: Path, name: str) -> None:
    if not _public(folder / name).exists():
        raise ControlError(f"{folder} has no authority {name}; create it with `tunnelmgr authority create {name}`")


def _public(file: Path) -> Path:
    return file.with_name(file.name + ".pub")


def _revoked(file: Path) -> Path:
    return file.with_name(file.name + ".revoked")


def _fingerprint_in(file: Path) -> str:
    try:
        return fingerprint(parse_key(file.read_text(encoding="utf-8"), AUTHORITY_KEY_TYPES))
    except ValueError as invalid:
        raise ConfigError([f"{file} does not contain a public key: {invalid}"]) from invalid
