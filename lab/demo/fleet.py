"""The demo for root: four EC2 instances, each in a network namespace with its own address, and two impostors."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.controller import HEAD_WITH_PAGE, LabController
from lab.demo.progress import Progress, ensure, keep_running, refusal_in
from lab.ec2 import Ec2Service, host_key_console
from lab.images import digest_of, make_image, skopeo_copy
from lab.network import Lab
from lab.processes import until

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from lab.registry import Registry

_CONFIGURATION = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]

[[group]]
name = "ci"
pull = ["team/**"]

[[source]]
name = "ec2-builders"
type = "ec2"
group = "builders"
regions = ["eu-west-1"]
filters = {{ "tag:role" = ["builder"] }}
trust = ["console"]
poll = "1s"
endpoint_url = "{endpoint}"

[[source]]
name = "ec2-ci"
type = "ec2"
group = "ci"
regions = ["eu-west-1"]
filters = {{ "tag:role" = ["ci"] }}
trust = ["console"]
poll = "1s"
endpoint_url = "{endpoint}"
"""
PAGE = "http://127.0.0.1:9750/"
"""The status page, in the network of the registry's machine."""
_ROLES = {"builder": "builder", "ci-1": "ci", "ci-2": "ci", "ci-3": "ci"}
_RUNNING_AT_THE_END = ("builder", "ci-1")
_IMAGE = "docker://localhost:5000/team/app:1"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo has at its end: the controller, and the agents and their ids by name."""

    controller: LabController
    agents: "Mapping[str, LabAgent]"
    ids: Mapping[str, str]


def show(progress: Progress, folder: Path, *, keep: bool, at_end: Callable[[Shown], None] | None = None) -> None:
    """Run the demo with a network namespace for each agent, and `at_end` before it stops; needs root."""
    _Demo(progress, folder).run(keep=keep, at_end=at_end)


class _Demo:
    """The parts of the demo, and its steps in order."""

    def __init__(self, progress: Progress, folder: Path) -> None:
        self._step = progress.step
        self._progress = progress
        self._folder = folder
        self._agents: dict[str, LabAgent] = {}
        self._ids: dict[str, str] = {}

    def run(self, *, keep: bool, at_end: Callable[[Shown], None] | None) -> None:
        with ExitStack() as stack:
            self._set_up(stack)
            self._push_and_pull()
            self._terminate("ci-2")
            self._replace("ci-3")
            self._list()
            if at_end is not None:
                at_end(Shown(self._controller, self._agents, self._ids))
            if keep:
                self._keep_running()
            with self._step("The controller drains its tunnels and stops"):
                ensure(self._controller.stop() == 0, "the controller exits with status 0")

    def _set_up(self, stack: ExitStack) -> None:
        with self._step("Start a network and the registry's machine, which listens on loopback only") as detail:
            self._lab = stack.enter_context(Lab(self._folder / "lab"))
            machine = self._lab.controller
            registry: Registry = self._lab.registry(machine, self._folder / "registry")
            detail(f"docker-registry on {registry.url}")
        with self._step("Start a stand-in for the EC2 API") as detail:
            self._cloud = stack.enter_context(Ec2Service(machine, 5556, self._folder / "cloud"))
            detail(f"{self._cloud.endpoint}")
        self._controller = LabController(machine, self._folder / "controller", self._cloud.environment)
        with self._step("Boot four agents, each with its own address, host key and OpenSSH server") as detail:
            for number, (name, role) in enumerate(_ROLES.items()):
                self._boot(name, role, f"10.77.0.{11 + number}")
                detail(f"{name:8} {self._agents[name].ip}  {self._ids[name]}")
        with self._step("Start the controller; every agent gets its tunnel") as detail:
            self._controller.configure(_CONFIGURATION.format(endpoint=self._cloud.endpoint), head=HEAD_WITH_PAGE)
            self._controller.start()
            for name, id_ in self._ids.items():
                agent = self._controller.wait_phase(id_, "up")
                detail(f"{name:8} up, host key verified by {agent['trust']}, probe {agent['probe_ms']:.0f} ms")

    def _boot(self, name: str, role: str, ip: str) -> None:
        agent = self._lab.agent(name, ip, self._controller.authorized_keys)
        instance = self._cloud.launch(ip, {"Name": name, "role": role})
        self._cloud.console(instance, host_key_console([agent.host_key]))
        self._agents[name], self._ids[name] = agent, f"ec2:{instance}"

    def _push_and_pull(self) -> None:
        layout = make_image(self._folder / "image", layers=4, kib_per_layer=2048)
        with self._step("builder pushes an image to localhost:5000/team/app:1") as detail:
            pushed = skopeo_copy(self._agents["builder"], layout, _IMAGE)
            ensure(pushed.returncode == 0, f"builder pushes the image: {pushed.stderr}")
            wanted = digest_of(None, layout)
            detail(f"4 layers, {wanted}")
        with self._step("ci-1 pulls the image from localhost:5000/team/app:1") as detail:
            target = f"oci:{self._folder / 'pulled'}:1"
            pulled = skopeo_copy(self._agents["ci-1"], _IMAGE, target)
            ensure(pulled.returncode == 0, f"ci-1 pulls the image: {pulled.stderr}")
            got = digest_of(None, target)
            ensure(got == wanted, f"the pulled digest is {wanted}, not {got}")
            detail(f"same digest, {got}")
        with self._step("ci-1 may not push; its client prints why") as detail:
            refused = skopeo_copy(self._agents["ci-1"], layout, "docker://localhost:5000/team/app:2")
            detail(refusal_in(refused, "group ci may not push team/app"))

    def _terminate(self, name: str) -> None:
        agent, id_ = self._agents[name], self._ids[name]
        with self._step(f"Terminate {name}; its tunnel closes") as detail:
            started = time.monotonic()
            self._cloud.terminate(id_.removeprefix("ec2:"))
            until(lambda: not agent.listeners(5000), f"the listener on {name} closes", timeout=15)
            detail(f"{time.monotonic() - started:.1f} s after EC2 reported the termination")
            agent.kill()
        with self._step(f"An unknown machine takes {agent.ip} and cannot reach the registry") as detail:
            stranger = self._lab.agent("stranger", agent.ip, self._controller.authorized_keys)
            refused = stranger.run(["curl", "-sS", "-m", "3", "http://localhost:5000/v2/_catalog"], timeout=10)
            ensure(refused.returncode != 0, f"the unknown machine reaches no registry: {refused.stdout}")
            detail(refused.stderr.strip())

    def _replace(self, name: str) -> None:
        agent, id_ = self._agents[name], self._ids[name]
        with self._step(f"{name} dies; an impostor takes {agent.ip} while EC2 still lists {name}") as detail:
            agent.kill()
            impostor = self._lab.agent("impostor", agent.ip, self._controller.authorized_keys)
            quarantined = self._controller.wait_phase(id_, "quarantined", timeout=30)
            ensure("Accepted publickey" not in impostor.log(), "the controller does not log in to the impostor")
            detail(f"{name} is quarantined: {quarantined['error']}; the controller did not log in")

    def _list(self) -> None:
        phases = {agent["name"]: agent["phase"] for agent in self._controller.client.agents()}
        wanted = {"builder": "up", "ci-1": "up", "ci-3": "quarantined"}
        ensure(phases == wanted, f"the agents are {wanted}, not {phases}")
        self._progress.show_command(self._controller, "list", "--all")

    def _keep_running(self) -> None:
        curl = "curl -s localhost:5000/v2/_catalog"
        commands = {name: f"{' '.join(self._agents[name].exec_prefix)} {curl}" for name in _RUNNING_AT_THE_END}
        keep_running(self._progress, self._controller.file, commands)
