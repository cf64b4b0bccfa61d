"""The fixtures of acceptance tests: a lab with a registry and a controller; each test adds the agents it needs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.controller import LabController
from lab.ec2 import Ec2Service, host_key_console
from lab.images import digest_of, make_image, skopeo_copy
from lab.network import Lab
from lab.registry import Registry

IMAGE = "docker://localhost:5000/team/app:1"

GROUPS = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]

[[group]]
name = "ci"
"""


class Field:
    """A lab, a registry, a controller and the agents of one test."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.registry: Registry = lab.registry(lab.controller, folder / "registry")
        self.controller = LabController(lab.controller, folder / "controller")
        self.agents: dict[str, LabAgent] = {}
        self._count = 0

    def boot(self, name: str, ip: str | None = None, *options: str, host_key: Path | None = None) -> LabAgent:
        """Boot an agent that trusts the controller."""
        self._count += 1
        address = ip or f"10.77.0.{20 + self._count}"
        agent = self.lab.agent(name, address, self.controller.authorized_keys, sshd_options=options, host_key=host_key)
        self.agents[name] = agent
        return agent

    def static(
        self,
        *agents: LabAgent,
        trust: str = "pinned",
        probe_interval: str = "1s",
        group: str = "builders",
        groups: str = GROUPS,
    ) -> None:
        """Configure a static source that puts these agents into a group."""
        text = f'{groups}\n[[source]]\nname = "office"\ntype = "static"\ngroup = "{group}"\n'
        text += f'trust = ["{trust}"]\npoll = "1s"\n'
        for agent in agents:
            text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\n'
            text += f'host_key = "{agent.host_key}"\n' if trust == "pinned" else ""
        self.controller.configure(text, probe_interval=probe_interval)

    def static_groups(self, members: Mapping[str, LabAgent], groups: str = GROUPS) -> None:
        """Configure a static source in which each agent is in a group of its own."""
        text = f'{groups}\n[[source]]\nname = "office"\ntype = "static"\npoll = "1s"\n'
        for group, agent in members.items():
            text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\ngroup = "{group}"\n'
            text += f'host_key = "{agent.host_key}"\n'
        self.controller.configure(text, probe_interval="1s")

    def up(self, *agents: LabAgent, groups: str = GROUPS) -> None:
        """Start the controller with these agents and wait until all are up."""
        self.static(*agents, groups=groups)
        self.controller.start()
        for agent in agents:
            self.controller.wait_phase(agent.name, "up")

    def push(self, agent: LabAgent, layers: int = 3, kib_per_layer: int = 256) -> str:
        """Push a new image from an agent, and return its digest."""
        layout = make_image(self.folder / f"image-{agent.name}", layers=layers, kib_per_layer=kib_per_layer)
        pushed = skopeo_copy(agent, layout, IMAGE)
        assert pushed.returncode == 0, pushed.stderr
        return digest_of(None, layout)

    def pull(self, agent: LabAgent) -> str:
        """Pull the image to an agent, and return the digest of the pulled image."""
        target = f"oci:{self.folder / f'pulled-{agent.name}'}:1"
        pulled = skopeo_copy(agent, IMAGE, target)
        assert pulled.returncode == 0, pulled.stderr
        return digest_of(None, target)

    def reaches(self, agent: LabAgent) -> bool:
        """Report whether the registry answers on the agent's port."""
        return agent.run(["curl", "-fsS", "-m", "3", "http://localhost:5000/v2/"], timeout=10).returncode == 0


class CloudField(Field):
    """A field whose agents are EC2 instances."""

    def __init__(self, lab: Lab, folder: Path, cloud: Ec2Service) -> None:
        super().__init__(lab, folder)
        self.cloud = cloud
        self.controller = LabController(lab.controller, folder / "cloud-controller", cloud.environment)

    def launch(
        self, name: str, ip: str | None = None, role: str = "builders", *, console: bool = True
    ) -> tuple[LabAgent, str]:
        """Boot an agent and list it as an instance; return it with its agent id."""
        agent = self.boot(name, ip)
        instance = self.listed(agent, role=role).removeprefix("ec2:")
        if console:
            self.cloud.console(instance, host_key_console([agent.host_key]))
        return agent, f"ec2:{instance}"

    def listed(self, agent: LabAgent, role: str = "builders", **tags: str) -> str:
        """List a booted agent as an instance, with more tags if given, and return its agent id."""
        return f"ec2:{self.cloud.launch(agent.ip, {'Name': agent.name, 'role': role, **tags})}"

    def believe(self, *trust: str, poll: str = "500ms", queue: str | None = None, more: str = "") -> None:
        """Configure one EC2 source with these trust methods, after the sections in `more`."""
        text = f'{GROUPS}{more}\n[[source]]\nname = "ec2"\ntype = "ec2"\ngroup = "builders"\n'
        text += f'regions = ["eu-west-1"]\ntrust = {json.dumps(trust)}\npoll = "{poll}"\n'
        text += f'endpoint_url = "{self.cloud.endpoint}"\n'
        text += f'events_queue = "{queue}"\n' if queue else ""
        self.controller.configure(text, probe_interval="1s")

    def configure(self, probe_interval: str = "2s", trust: str = "console") -> None:
        """Configure one EC2 source per group."""
        text = GROUPS
        for group in ("builders", "ci"):
            text += f'\n[[source]]\nname = "ec2-{group}"\ntype = "ec2"\ngroup = "{group}"\nregions = ["eu-west-1"]\n'
            text += f'filters = {{ "tag:role" = ["{group}"] }}\ntrust = ["{trust}"]\npoll = "500ms"\n'
            text += f'endpoint_url = "{self.cloud.endpoint}"\n'
        self.controller.configure(text, probe_interval=probe_interval)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Open a lab without agents, on a path that is open to the agents' users."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with Lab(tmp_path / "lab") as lab:
        yield lab


@pytest.fixture
def field(lab: Lab, tmp_path: Path) -> Iterator[Field]:
    """Make a field with a registry and a controller that is not started."""
    field = Field(lab, tmp_path)
    yield field
    field.registry.stop()


@pytest.fixture
def cloud_field(lab: Lab, tmp_path: Path) -> Iterator[CloudField]:
    """Make a field with an EC2 API beside the registry."""
    with Ec2Service(lab.controller, 5556, tmp_path / "cloud") as cloud:
        field = CloudField(lab, tmp_path, cloud)
        yield field
        field.registry.stop()
