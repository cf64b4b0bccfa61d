"""Three registries on one bucket: a writer, a replica whose pushes go to the writer, and one that names the writer."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from typing import Final, Self

from lab.agents import LabAgent
from lab.controller import LabController
from lab.images import digest_of, make_image, skopeo_copy
from lab.namespaces import Machine
from lab.network import Lab
from lab.registry import Registry
from lab.s3 import S3Service, S3User
from tests.acceptance.document_commands import ROOT

BUCKET: Final = "example-images"
GROUPS: Final = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/**"]
delete = ["team/**"]

[[group]]
name = "replicas"
pull = ["**"]
push = ["team/**"]
delete = ["team/**"]
"""
FORWARD: Final = """
[[forward]]
name = "registry"
listen = ["127.0.0.1:5000", "[::1]:5000"]
target = "127.0.0.1:5500"
writer = "registry-1"
"""


def documented_policies() -> dict[str, object]:
    """Return the IAM policies of docs/registry.md, of the writer and of a replica."""
    text = (ROOT / "docs/registry.md").read_text(encoding="utf-8")
    writer, replica = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    return {"writer": json.loads(writer), "replica": json.loads(replica)}


def documented_forward() -> str:
    """Return the forward of docs/registry.md whose pushes go through a tunnel of the writer's controller."""
    text = (ROOT / "docs/registry.md").read_text(encoding="utf-8")
    (forward,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "push_target" in block]
    return f"\n{dedent(forward)}"


def static_agents(members: dict[LabAgent, str]) -> str:
    """Return a static source with these agents, each in its group."""
    text = '\n[[source]]\nname = "office"\ntype = "static"\npoll = "1s"\n'
    for agent, group in members.items():
        text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\ngroup = "{group}"\n'
        text += f'host_key = "{agent.host_key}"\n'
    return text


class Side:
    """A machine with a registry on the bucket and a controller, and the agent that is near it."""

    def __init__(self, name: str, machine: Machine, folder: Path, user: S3User, port: int) -> None:
        self.name = name
        self.machine = machine
        self.folder = folder / name
        self.controller = LabController(machine, self.folder / "controller")
        self._user = user
        self._port = port
        self.registry = self.make_registry(read_only=name != "writer")

    def make_registry(self, *, read_only: bool, user: S3User | None = None, port: int = 0) -> Registry:
        """Return this side's registry, with another setting, credential or port if given; it is not started."""
        port = port or self._port
        folder = self.folder / f"registry-{port}"
        return Registry(self.machine, folder, port=port, read_only=read_only, storage=user or self._user)


class ReplicaSite:
    """The sides, started; each has an agent of the group builders."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.s3 = S3Service(lab.machine("storage", "10.77.0.5"), 9000, folder / "s3").start()
        self.users = self.s3.create(BUCKET, documented_policies())
        self.writer = Side("writer", lab.controller, folder, self.users["writer"], 5000)
        # The machine of replica-a is an agent of the writer's controller: there, localhost:5000 is the writer.
        machine_a = lab.agent("replica-a", "10.77.0.2", self.writer.controller.authorized_keys)
        self.a = Side("replica-a", machine_a, folder, self.users["replica"], 5500)
        self.b = Side("replica-b", lab.machine("replica-b", "10.77.0.3"), folder, self.users["replica"], 5500)
        self.builder, self.near_a, self.near_b = (
            lab.agent(name, ip, side.controller.authorized_keys)
            for name, ip, side in (
                ("builder", "10.77.0.20", self.writer),
                ("near-a", "10.77.0.21", self.a),
                ("near-b", "10.77.0.22", self.b),
            )
        )
        members = static_agents({self.builder: "builders", machine_a: "replicas"})
        self.writer.controller.configure(GROUPS + members, probe_interval="1s")
        near = static_agents({self.near_a: "builders"})
        self.a.controller.configure(documented_forward() + GROUPS + near, probe_interval="1s")
        near = static_agents({self.near_b: "builders"})
        self.b.controller.configure(FORWARD + GROUPS + near, probe_interval="1s")

    def start(self) -> Self:
        """Start all registries and controllers, and wait until every agent is up."""
        for side in (self.writer, self.a, self.b):
            side.registry.start()
            side.controller.start()
        for controller, names in (
            (self.writer.controller, ("builder", "replica-a")),
            (self.a.controller, ("near-a",)),
            (self.b.controller, ("near-b",)),
        ):
            for name in names:
                controller.wait_phase(name, "up")
        return self

    def push(self, agent: LabAgent, repository: str, tag: str = "1") -> str:
        """Push a new image from an agent, and return its digest."""
        number = len(list(self.folder.glob("image-*")))
        layout = make_image(self.folder / f"image-{number}", layers=2)
        pushed = skopeo_copy(agent, layout, f"docker://localhost:5000/{repository}:{tag}")
        assert pushed.returncode == 0, pushed.stderr
        return digest_of(None, layout)

    def pull(self, agent: LabAgent, repository: str, tag: str = "1") -> str:
        """Pull an image to an agent with all its layers, and return its digest."""
        number = len(list(self.folder.glob("pulled-*")))
        target = f"oci:{self.folder / f'pulled-{number}'}:1"
        pulled = skopeo_copy(agent, f"docker://localhost:5000/{repository}:{tag}", target)
        assert pulled.returncode == 0, pulled.stderr
        return digest_of(None, target)

    def stop(self) -> None:
        """End everything that would otherwise wait for its clients."""
        with ExitStack() as stack:
            for side in (self.writer, self.a, self.b):
                stack.callback(side.registry.stop)
                stack.callback(side.controller.kill)
