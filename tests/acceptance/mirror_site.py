"""A registry, a pull-through cache of another registry, a controller beside both, and an agent: docs/mirrors.md."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.agents import LabAgent
from lab.controller import DEFAULTS_HEAD, LabController
from lab.images import digest_of, make_image, skopeo_copy
from lab.network import Lab
from lab.registry import Registry
from tests.acceptance.document_commands import Document
from tests.acceptance.replica_site import static_agents
from tunnelmgr.config import load
from tunnelmgr.hooks import authorized_keys_line
from tunnelmgr.ssh.key_files import public_line

DOCUMENT: Final = Document("mirrors.md")
HEAD: Final = DEFAULTS_HEAD.replace("[controller]", '[controller]\naudit = "{folder}/audit.jsonl"')
ON_THE_HUB: Final = ("library/alpine:3.20", "stranger/app:1")


@dataclass
class MirrorSite:
    """The started site; `digest` is that of every image on the hub, which only the cache reaches."""

    lab: Lab
    folder: Path
    hub: Registry
    controller: LabController
    agent: LabAgent
    digest: str

    def requests(self, since: int = 0) -> list[tuple[str, str, str]]:
        """Return action, repository and rule of the audited requests through the forward of the cache."""
        lines = (self.controller.folder / "audit.jsonl").read_text().splitlines()
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        through = [entry for entry in entries if entry.get("forward") == "hub"]
        return [(entry["action"], entry.get("repository", ""), entry["rule"]) for entry in through[since:]]


@contextmanager
def mirror_site(folder: Path) -> Iterator[MirrorSite]:
    """Start the site with the forwards and the group of the document, and wait until the agent is up."""
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    with Lab(folder / "lab") as lab, ExitStack() as stack:
        started = [lab.registry(lab.controller, folder / name, port) for name, port in (("own", 5000), ("hub", 5600))]
        hub = started[1]
        image = make_image(folder / "image", layers=2)
        for name in ON_THE_HUB:
            pushed = skopeo_copy(lab.controller, image, f"docker://127.0.0.1:{hub.port}/{name}")
            assert pushed.returncode == 0, pushed.stderr
        started.append(Registry(lab.controller, folder / "cache", port=5501, cache_of=hub.url).start())
        for registry in started:
            stack.callback(registry.stop)
        controller = LabController(lab.controller, folder / "controller")
        (forwards,) = DOCUMENT.fenced("The forward", "toml")
        controller.configure(forwards, head=HEAD)
        listen = [endpoint for forward in load(controller.file).forwards() for endpoint in forward.listen]
        line = authorized_keys_line(listen, public_line(controller.folder / "id_ed25519"))
        agent = lab.agent("builder", "10.77.0.20", line)
        controller.configure(forwards + static_agents({agent: "builders"}), probe_interval="1s", head=HEAD)
        controller.start()
        stack.callback(controller.kill)
        controller.wait_phase("builder", "up")
        yield MirrorSite(lab, folder, hub, controller, agent, digest_of(None, image))
