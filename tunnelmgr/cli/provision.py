"""`provision`: user-data with a host key for one machine that is to be launched, and the label that names the seed."""

from enum import StrEnum
from typing import Annotated

import typer

from tunnelmgr.cli.agent_setup import AgentSetup, AgentText
from tunnelmgr.cli.command import Command, command, one_of
from tunnelmgr.cli.options import ConfigOption, JsonOption, SocketOption, chosen_file, client
from tunnelmgr.cli.output import print_json
from tunnelmgr.config import load
from tunnelmgr.ssh.key_files import fresh_host_key


class Cloud(StrEnum):
    """The cloud, which decides the form of the label."""

    EC2 = "ec2"
    HETZNER = "hetzner"

    @property
    def label_word(self) -> str:
        """What the cloud calls a label."""
        return "tag" if self is Cloud.EC2 else "label"


SEED_LABEL_OF = {Cloud.EC2: "tunnelmgr:seed", Cloud.HETZNER: "tunnelmgr-seed"}
_EXAMPLES = """Examples:

`tunnelmgr provision --cloud hetzner --json > seed.json`

`hcloud server create --user-data-from-file <(jq -r .user_data seed.json) --label "$(jq -r .label seed.json)" …`
"""


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command(cls=Command, rich_help_panel="Agents", epilog=_EXAMPLES)(provision)


@command
def provision(
    context: typer.Context,
    cloud: Annotated[
        Cloud, typer.Option(metavar="CLOUD", help="Form of the label: ec2 or hetzner", parser=one_of(Cloud))
    ] = Cloud.EC2,
    hours: Annotated[float, typer.Option(metavar="HOURS", min=0.1, max=720, help="Hours until the seed expires")] = 24,
    key_only: Annotated[
        bool, typer.Option("--key-only", help="Print only the host key, without the tunnel's user and the wait script")
    ] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a host key for one launch; prints user-data with the key, and the tag or label that names the seed.

    The daemon keeps the public key. The private key is in the user-data only, and is for one machine.
    Anyone who can read the machine's user-data can read the key, on EC2 every process there: use IMDSv2 with a hop
    limit.
    """
    private, public = fresh_host_key("tunnelmgr-seed")
    parts = [seed_part(private, public)]
    if not key_only:
        setup = AgentSetup.of(load(chosen_file(context, config)))
        parts.insert(0, setup.text(AgentText.CLOUD_INIT).removeprefix("#cloud-config\n"))
    text = "#cloud-config\n" + "".join(parts)
    # Last, so that a failure above leaves no seed behind.
    seed = client(context, config, socket).seed(public, hours * 3600)["seed"]
    label = f"{SEED_LABEL_OF[cloud]}={seed}"
    if as_json:
        print_json({"seed": seed, "label": label, "public_key": public, "user_data": text})
        return
    typer.echo(f"launch the machine with this {cloud.label_word}: {label}", err=True)
    typer.echo(text, nl=False)


def seed_part(private: str, public: str) -> str:
    """Return the part of user-data that gives a machine this host key and no other.

    Without `ssh_genkeytypes`, cloud-init also makes keys of the other types, and sshd would present one of those first.
    https://cloudinit.readthedocs.io/en/latest/reference/modules.html#ssh
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
