"""The demo for an ordinary user: one agent on loopback, from a static source; it needs no namespaces."""

import getpass
import shutil
from contextlib import ExitStack
from pathlib import Path

from lab.controller import LabController
from lab.demo.progress import Progress, ensure, keep_running, refusal_in
from lab.images import digest_of, make_image, skopeo_copy
from lab.namespaces import Machine
from lab.processes import LabError, Process, Processes, until
from lab.registry import Registry

SSH_PORT = 2222
REGISTRY_PORT = 5001
LISTEN_PORT = 5000

_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowStreamLocalForwarding no
ForceCommand /usr/sbin/nologin
ClientAliveInterval 2
ClientAliveCountMax 2
"""
_CONFIGURATION = """
[[forward]]
name = "registry"
listen = ["127.0.0.1:{listen}"]
target = "127.0.0.1:{registry}"

[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]

[[source]]
name = "here"
type = "static"
group = "builders"
poll = "1s"
"""
_AGENT = """
  [[source.agent]]
  name = "builder"
  address = "127.0.0.1"
  port = {port}
  host_key = "{key}"
"""
_IMAGE = f"docker://localhost:{LISTEN_PORT}/team/app:1"


def show(progress: Progress, folder: Path, *, keep: bool) -> None:
    """Run the demo with one agent on this machine's loopback."""
    progress.note(
        "Without root there are no network namespaces: this demo has one agent, on loopback, from a file.\n"
        "Not shown: EC2, several agents, an address that changes owner. Run `sudo make demo` to see everything.\n",
        style="yellow",
    )
    missing = [name for name in ("docker-registry", "skopeo", "umoci", "ssh-keygen") if not shutil.which(name)]
    missing += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if missing:
        raise LabError(f"missing programs: {', '.join(missing)}. Run `sudo make install` to install them.")
    with ExitStack() as stack:
        _Demo(progress, folder, stack).run(keep=keep)


class _Demo:
    """The parts of the demo, and its steps in order."""

    def __init__(self, progress: Progress, folder: Path, stack: ExitStack) -> None:
        self._step = progress.step
        self._progress = progress
        self._folder = folder
        processes = Processes()
        stack.callback(processes.end_all)
        self._machine = Machine(processes)
        self._stack = stack
        self._controller = LabController(self._machine, folder / "controller")
        self._sshd: Process | None = None

    def run(self, *, keep: bool) -> None:
        with self._step("Start a registry on loopback, and an OpenSSH server as the agent") as detail:
            registry = Registry(self._machine, self._folder / "registry", port=REGISTRY_PORT)
            self._stack.enter_context(registry)
            key = self._start_sshd("agent")
            detail(f"docker-registry on {registry.url}, sshd on 127.0.0.1:{SSH_PORT}")
        with self._step("Start the controller; the agent gets its tunnel") as detail:
            self._configure(_AGENT.format(port=SSH_PORT, key=key))
            self._controller.start()
            detail(f"up, host key verified by {self._controller.wait_phase('builder', 'up')['trust']}")
        self._push_and_pull()
        if keep:
            curl = f"curl -s localhost:{LISTEN_PORT}/v2/_catalog"
            keep_running(self._progress, self._controller.file, {"the agent": curl})
        self._remove()
        self._replace(key)
        with self._step("The controller drains its tunnels and stops"):
            ensure(self._controller.stop() == 0, "the controller exits with status 0")

    def _start_sshd(self, name: str) -> str:
        """Start an sshd with a new host key, and return the public key."""
        folder = self._folder / name
        folder.mkdir()
        self._machine.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
        line = self._controller.authorized_keys.replace(":5000", f":{LISTEN_PORT}")
        (folder / "authorized_keys").write_text(line + "\n")
        (folder / "sshd_config").write_text(_SSHD.format(port=SSH_PORT, folder=folder))
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")]
        self._machine.require_free(SSH_PORT)
        self._sshd = self._machine.popen(argv, log=folder / "sshd.log")
        until(lambda: self._machine.listeners(SSH_PORT), f"sshd listens on {SSH_PORT}")
        return " ".join((folder / "host_key.pub").read_text().split()[:2])

    def _configure(self, agents: str) -> None:
        self._controller.configure(_CONFIGURATION.format(listen=LISTEN_PORT, registry=REGISTRY_PORT) + agents)
        user = f'[ssh]\nuser = "{getpass.getuser()}"'
        text = self._controller.file.read_text()
        self._controller.file.write_text(text.replace("[ssh]", user, 1))

    def _reload(self, agents: str) -> None:
        self._configure(agents)
        reloaded = self._controller.command("reload")
        ensure(reloaded.returncode == 0, f"the controller reloads its configuration: {reloaded.stderr}")

    def _push_and_pull(self) -> None:
        layout = make_image(self._folder / "image", layers=4, kib_per_layer=2048)
        with self._step(f"builder pushes an image to localhost:{LISTEN_PORT}/team/app:1 and pulls it again") as detail:
            pushed = skopeo_copy(self._machine, layout, _IMAGE)
            ensure(pushed.returncode == 0, f"builder pushes the image: {pushed.stderr}")
            target = f"oci:{self._folder / 'pulled'}:1"
            pulled = skopeo_copy(self._machine, _IMAGE, target)
            ensure(pulled.returncode == 0, f"builder pulls the image: {pulled.stderr}")
            ensure(digest_of(None, target) == digest_of(None, layout), "both digests are equal")
            detail(f"4 layers, same digest, {digest_of(None, target)}")
        with self._step("builder may not push to secret/app; its client prints why") as detail:
            refused = skopeo_copy(self._machine, layout, f"docker://localhost:{LISTEN_PORT}/secret/app:1")
            detail(refusal_in(refused, "group builders may not push secret/app"))

    def _remove(self) -> None:
        with self._step("Remove the agent from the file; its tunnel closes"):
            self._reload("")
            until(lambda: not self._machine.listeners(LISTEN_PORT), "the listener closes")

    def _replace(self, key: str) -> None:
        with self._step("An impostor answers at the agent's address and is quarantined") as detail:
            if self._sshd is not None:
                self._sshd.end()
            self._start_sshd("impostor")
            self._reload(_AGENT.format(port=SSH_PORT, key=key))
            detail(str(self._controller.wait_phase("builder", "quarantined")["message"]))
        self._progress.show_command(self._controller, "list")
