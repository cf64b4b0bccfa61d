"""The demo for an ordinary user: what works without namespaces, on loopback, with one agent and a static source."""

import getpass
import shutil
from contextlib import ExitStack
from pathlib import Path

from lab.controller import LabController
from lab.images import digest_of, make_image, skopeo_copy
from lab.namespaces import Machine
from lab.processes import LabError, Process, Processes, until
from lab.progress import Narrator, ensure, stay
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


def play(narrator: Narrator, folder: Path, *, keep: bool) -> None:
    """Run the demo with one agent on this machine's loopback."""
    narrator.console.print(
        "Not root, so no machines with their own addresses: one agent on loopback, named in the file.\n"
        "Left out: the cloud, the agents side by side, the address that changes hands. As root it shows all.\n",
        style="yellow",
    )
    lacking = [name for name in ("docker-registry", "skopeo", "umoci", "ssh-keygen") if not shutil.which(name)]
    if lacking or not Path("/usr/sbin/sshd").exists():
        raise LabError(f"missing here: {', '.join(lacking) or 'sshd'}; ask an administrator to install it")
    with ExitStack() as stack:
        _Solo(narrator, folder, stack).play(keep=keep)


class _Solo:
    """One agent, which is this very machine."""

    def __init__(self, narrator: Narrator, folder: Path, stack: ExitStack) -> None:
        self._say = narrator
        self._folder = folder
        processes = Processes()
        stack.callback(processes.end_all)
        self._machine = Machine(processes)
        self._stack = stack
        self._controller = LabController(self._machine, folder / "controller")
        self._rest = _CONFIGURATION.format(listen=LISTEN_PORT, registry=REGISTRY_PORT)
        self._sshd: Process | None = None

    def play(self, *, keep: bool) -> None:
        with self._say.step("docker-registry on loopback, and an sshd as the agent"):
            self._stack.enter_context(
                Registry(self._machine, self._folder / "registry", port=REGISTRY_PORT, host="127.0.0.1")
            )
            key = self._boot("agent")
        with self._say.step("the controller starts and the agent gets its tunnel") as say:
            self._configure(_AGENT.format(port=SSH_PORT, key=key))
            self._controller.start()
            say(f"up, key proved by {self._controller.wait_phase('builder', 'up')['trust']}")
        self._push_and_pull()
        if keep:
            stay(self._say, self._controller.file, {"the agent": f"curl -s localhost:{LISTEN_PORT}/v2/_catalog"})
        self._leave_and_lie(key)
        with self._say.step("the controller drains and stops"):
            ensure(self._controller.stop() == 0, "the controller exits with 0")

    def _boot(self, name: str) -> str:
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
        self._controller.configure(self._rest + agents)
        user = f'[ssh]\nuser = "{getpass.getuser()}"'
        text = self._controller.file.read_text()
        self._controller.file.write_text(text.replace("[ssh]", user, 1))

    def _push_and_pull(self) -> None:
        layout = make_image(self._folder / "image", layers=4, kib_per_layer=2048)
        with self._say.step(f"skopeo copy … {_IMAGE}, and back") as say:
            pushed = skopeo_copy(self._machine, layout, _IMAGE)
            ensure(pushed.returncode == 0, f"the builder pushes: {pushed.stderr}")
            target = f"oci:{self._folder / 'pulled'}:1"
            pulled = skopeo_copy(self._machine, _IMAGE, target)
            ensure(pulled.returncode == 0, f"it pulls: {pulled.stderr}")
            ensure(digest_of(None, target) == digest_of(None, layout), "both digests are equal")
            say(f"4 layers, both ways {digest_of(None, target)}")
        with self._say.step("a push outside its grant is refused, and its own client says why") as say:
            refused = skopeo_copy(self._machine, layout, f"docker://localhost:{LISTEN_PORT}/secret/app:1")
            message = "tunnelmgr: group builders may not push secret/app"
            ensure(refused.returncode != 0 and message in refused.stderr, f"the push is refused: {refused.stderr}")
            say(message)

    def _leave_and_lie(self, key: str) -> None:
        with self._say.step("the agent leaves the file, and its tunnel goes"):
            self._configure("")
            ensure(self._controller.command("reload").returncode == 0, "the reload is taken")
            until(lambda: not self._machine.listeners(LISTEN_PORT), "the listener is gone")
        with self._say.step("a stranger answers at its address, and is quarantined") as say:
            if self._sshd is not None:
                self._sshd.end()
            self._boot("stranger")
            self._configure(_AGENT.format(port=SSH_PORT, key=key))
            ensure(self._controller.command("reload").returncode == 0, "the reload is taken")
            say(str(self._controller.wait_phase("builder", "quarantined")["message"]))
        shown = self._controller.command("list")
        self._say.console.print("\n$ tunnelmgr list", style="bold")
        self._say.console.print(shown.stdout, markup=False)
