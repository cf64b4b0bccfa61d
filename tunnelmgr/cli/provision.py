"""`provision`: a host key for a machine that is to be launched, in user-data, and the label that names it."""

from enum import StrEnum
from typing import Annotated

import typer

from tunnelmgr import hooks
from tunnelmgr.cli.common import ConfigOption, JsonOption, SocketOption, chosen_file, client, command, print_json
from tunnelmgr.config import load
from tunnelmgr.ssh.login import fresh_host_key, public_lines


class Cloud(StrEnum):
    """Which cloud's form the label has."""

    EC2 = "ec2"
    HETZNER = "hetzner"


LABELS = {Cloud.EC2: "tunnelmgr:seed", Cloud.HETZNER: "tunnelmgr-seed"}
_EXAMPLES = """Examples:

`tunnelmgr provision --cloud hetzner --json > seed.json`

`hcloud server create --user-data-from-file <(jq -r .user_data seed.json) --label "$(jq -r .label seed.json)" …`
"""


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command(rich_help_panel="Agents", epilog=_EXAMPLES)(provision)


@command
def provision(
    context: typer.Context,
    cloud: Annotated[Cloud, typer.Option(help="The cloud whose form the label is to have")] = Cloud.EC2,
    hours: Annotated[float, typer.Option(min=0.1, max=720, help="Until when the machine must have been launched")] = 24,
    key_only: Annotated[bool, typer.Option("--key-only", help="Leave out the tunnel's user and the hook")] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a host key for one launch: prints user-data that carries it, and the tag or label that names it.

    The daemon keeps the public half; the private one is in the user-data and nowhere else, and serves one machine.
    Whoever can read a machine's user-data can read the key, on EC2 every process there: use IMDSv2 with a hop limit.
    """
    private, public = fresh_host_key("tunnelmgr-seed")
    parts = [seed_part(private, public)]
    if not key_only:
        loaded = load(chosen_file(context, config))
        listen = [endpoint for forward in loaded.forwards() for endpoint in forward.listen]
        line = hooks.authorized_keys_line(listen, public_lines(loaded.ssh)[0])
        parts.insert(0, hooks.cloud_init(line, loaded.ssh.user).removeprefix("#cloud-config\n"))
    text = "#cloud-config\n" + "".join(parts)
    # Last, so that nothing that fails here leaves a seed behind.
    seed = client(context, config, socket).seed(public, hours * 3600)["seed"]
    label = f"{LABELS[cloud]}={seed}"
    if as_json:
        print_json({"seed": seed, "label": label, "public_key": public, "user_data": text})
        return
    typer.echo(f"label the machine {label}", err=True)
    typer.echo(text, nl=False)


def seed_part(private: str, public: str) -> str:
    """Return the part of user-data that gives a machine this host key and no other.

    cloud-init makes the types that it is given nothing for, unless told to make none; another type would be shown to
    us first. https://cloudinit.readthedocs.io/en/latest/reference/modules.html#ssh
    """
    indented = "".join(f"    {line}\n" for line in private.strip().splitlines())
    kind = public.split(maxsplit=1)[0].removeprefix("ssh-")
    return (
        "ssh_deletekeys: true\n"
        f"ssh_genkeytypes: [{kind}]\n"
        "ssh_keys:\n"
        f"  {kind}_private: |\n{indented}"
        f"  {kind}_public: {public} tunnelmgr-seed\n"
    )
