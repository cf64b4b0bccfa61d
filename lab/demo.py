"""The demo: one builder, three agents, a cloud and a thief, told step by step with real parts."""

import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lab import unprivileged_demo
from lab.controller import LabController
from lab.ec2 import Cloud, host_key_console
from lab.images import digest_of, make_image, skopeo_copy
from lab.lab import Lab
from lab.processes import LabError, until
from lab.progress import Narrator, ensure, stay
from tunnelmgr.errors import TunnelmgrError

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
_KEPT = ("builder", "ci-1")
_IMAGE = "docker://localhost:5000/team/app:1"


def tell(*, keep: bool) -> int:
    """Run the demo and return its exit status: 0 only if every step happened."""
    narrator = Narrator()
    # What is asked to stop cleans up as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tunnelmgr-demo-") as folder:
        Path(folder).chmod(0o755)  # the agents' own users pass through it
        try:
            if os.geteuid() == 0:
                _Fleet(narrator, Path(folder)).play(keep=keep)
            else:
                unprivileged_demo.play(narrator, Path(folder), keep=keep)
        except (LabError, TunnelmgrError) as failed:
            narrator.console.print(f"✖ {failed}", style="bold red", markup=False)
            return 1
        except KeyboardInterrupt:
            return 130
    narrator.console.print(f"\nAll of it happened, in {time.monotonic() - narrator.begun:.0f} s.", style="bold green")
    return 0


class _Fleet:
    """The demo for root: a machine with its own address for each agent."""

    def __init__(self, narrator: Narrator, folder: Path) -> None:
        self._say = narrator
        self._folder = folder
        self._agents: dict[str, LabAgent] = {}
        self._ids: dict[str, str] = {}

    def play(self, *, keep: bool) -> None:
        with ExitStack() as stack:
            self._set_up(stack)
            self._push_and_pull()
            self._terminate("ci-2")
            self._steal("ci-3")
            self._show_all()
            if keep:
                self._stay()
            with self._say.step("the controller drains and stops"):
                ensure(self._controller.stop() == 0, "the controller exits with 0")

    def _set_up(self, stack: ExitStack) -> None:
        with self._say.step("a network with a switch; the registry's host has no port open but SSH out") as say:
            self._lab = stack.enter_context(Lab(self._folder / "lab"))
            machine = self._lab.controller
            registry: Registry = self._lab.registry(machine, self._folder / "registry")
            say(f"docker-registry on {registry.url} there, loopback only")
        with self._say.step("an EC2 API"):
            self._cloud = stack.enter_context(Cloud(machine, 5556, self._folder / "cloud"))
        self._controller = LabController(machine, self._folder / "controller", self._cloud.environment)
        with self._say.step("four machines boot, each with its own address, host key and OpenSSH") as say:
            for number, (name, role) in enumerate(
                {"builder": "builder", "ci-1": "ci", "ci-2": "ci", "ci-3": "ci"}.items()
            ):
                self._boot(name, role, f"10.77.0.{11 + number}")
                say(f"{name:8} {self._agents[name].ip}  {self._ids[name]}")
        with self._say.step("the controller starts from its configuration file; every agent gets its tunnel") as say:
            self._controller.configure(_CONFIGURATION.format(endpoint=self._cloud.endpoint))
            self._controller.start()
            for name, id_ in self._ids.items():
                facts = self._controller.wait_phase(id_, "up")
                say(f"{name:8} up, key proved by {facts['trust']}, probe {facts['probe_ms']:.0f} ms")

    def _boot(self, name: str, role: str, ip: str) -> None:
        agent = self._lab.agent(name, ip, self._controller.authorized_keys)
        instance = self._cloud.launch(ip, {"Name": name, "role": role})
        self._cloud.console(instance, host_key_console([agent.host_key]))
        self._agents[name], self._ids[name] = agent, f"ec2:{instance}"

    def _push_and_pull(self) -> None:
        layout = make_image(self._folder / "image", layers=4, kib_per_layer=2048)
        with self._say.step("builder: skopeo copy … docker://localhost:5000/team/app:1") as say:
            pushed = skopeo_copy(self._agents["builder"], layout, _IMAGE)
            ensure(pushed.returncode == 0, f"the builder pushes: {pushed.stderr}")
            wanted = digest_of(None, layout)
            say(f"4 layers, {wanted}")
        with self._say.step("ci-1: skopeo copy docker://localhost:5000/team/app:1 …") as say:
            target = f"oci:{self._folder / 'pulled'}:1"
            pulled = skopeo_copy(self._agents["ci-1"], _IMAGE, target)
            ensure(pulled.returncode == 0, f"ci-1 pulls: {pulled.stderr}")
            got = digest_of(None, target)
            ensure(got == wanted, f"the digest pulled, {got}, is the one pushed, {wanted}")
            say(f"the same {got}")
        with self._say.step("ci-1 may not push, and its own client says why") as say:
            refused = skopeo_copy(self._agents["ci-1"], layout, "docker://localhost:5000/team/app:2")
            message = "tunnelmgr: group ci may not push team/app"
            ensure(refused.returncode != 0 and message in refused.stderr, f"the push is refused: {refused.stderr}")
            say(message)

    def _terminate(self, name: str) -> None:
        agent, id_ = self._agents[name], self._ids[name]
        with self._say.step(f"{name} is terminated, and its tunnel goes") as say:
            begun = time.monotonic()
            self._cloud.terminate(id_.removeprefix("ec2:"))
            until(lambda: not agent.listeners(5000), f"{name} has no listener any more", timeout=15)
            say(f"{time.monotonic() - begun:.1f} s after the cloud said so")
            agent.kill()
        with self._say.step(f"a stranger takes {agent.ip}, trusts our key, and gets nothing") as say:
            stranger = self._lab.agent("stranger", agent.ip, self._controller.authorized_keys)
            refused = stranger.run(["curl", "-sS", "-m", "3", "http://localhost:5000/v2/_catalog"], timeout=10)
            ensure(refused.returncode != 0, f"the stranger reaches no registry: {refused.stdout}")
            say(refused.stderr.strip())

    def _steal(self, name: str) -> None:
        agent, id_ = self._agents[name], self._ids[name]
        with self._say.step(f"{name} dies silently; a thief has {agent.ip} while the cloud still lists {name}") as say:
            agent.kill()
            thief = self._lab.agent("thief", agent.ip, self._controller.authorized_keys)
            facts = self._controller.wait_phase(id_, "quarantined", timeout=30)
            ensure("Accepted publickey" not in thief.log(), "the thief is offered no login")
            say(f"{name} is quarantined: {facts['error']}; no login was offered")

    def _show_all(self) -> None:
        shown = self._controller.command("list", "--all")
        ensure(shown.returncode == 0, f"`tunnelmgr list` works: {shown.stderr}")
        phases = {agent["name"]: agent["phase"] for agent in self._controller.client.agents()}
        wanted = {"builder": "up", "ci-1": "up", "ci-3": "quarantined"}
        ensure(phases == wanted, f"the agents are {wanted}, not {phases}")
        self._say.console.print("\n$ tunnelmgr list --all", style="bold")
        self._say.console.print(shown.stdout, markup=False)

    def _stay(self) -> None:
        curl = "curl -s localhost:5000/v2/_catalog"
        tries = {name: f"{' '.join(self._agents[name].exec_prefix)} {curl}" for name in _KEPT}
        stay(self._say, self._controller.file, tries)
