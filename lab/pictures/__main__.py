"""`python -m lab.pictures FOLDER`: run the demo and take the pictures of the documents, which `make pictures` does."""

import argparse
import io
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab.agents import LabAgent
from lab.demo import fleet
from lab.demo.progress import Progress, ensure
from lab.images import layer_digests, make_image, skopeo_copy
from lab.processes import LabError
from tunnelmgr.errors import TunnelmgrError

COLUMNS = 138
"""The width of the terminal in the picture of `list`."""
SLOWLY = "1M"
"""Bytes a second of the pull that is in progress on the page."""


def main() -> int:
    """Take the pictures and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.pictures", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write page.png, agent.png and list.png")
    pictures = parser.parse_args().folder.absolute()
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="tunnelmgr-demo-") as folder:
        Path(folder).chmod(0o755)  # the agents' own users pass through it
        try:
            fleet.show(progress, Path(folder), keep=False, at_end=partial(take, pictures))
        except (LabError, TunnelmgrError) as failed:
            progress.fail(str(failed))
            return 1
    progress.succeed()
    return 0


def take(pictures: Path, shown: fleet.Shown) -> None:
    """Take the pictures of a demo that has come to its end, while one of its agents pulls."""
    controller = shown.controller
    _begin_a_slow_pull(shown.agents["builder"], shown.agents["ci-1"], controller.folder)
    table = controller.folder / "list.html"
    command = shlex.join([sys.executable, "-m", "tunnelmgr", "-c", str(controller.file), "list", "--all"])
    environment = {**controller.environment, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    terminal = ["script", "-qec", command, "/dev/null"]  # with a terminal of its own
    table.write_text(_as_html(controller.machine.run(terminal, env=environment, check=True).stdout))
    camera = [sys.executable, "-m", "lab.pictures.camera", str(pictures), fleet.PAGE, shown.ids["ci-3"], str(table)]
    taken = controller.machine.run(camera, timeout=60)
    ensure(taken.returncode == 0, f"the pictures are taken: {taken.stderr[-2000:]}")


def _begin_a_slow_pull(builder: LabAgent, puller: LabAgent, folder: Path) -> None:
    """Push an image that does not fit into the buffers on its way, and pull its layer slowly."""
    image = make_image(folder / "large", layers=1, kib_per_layer=32 * 1024)
    pushed = skopeo_copy(builder, image, "docker://localhost:5000/team/base:2")
    ensure(pushed.returncode == 0, f"builder pushes the image: {pushed.stderr}")
    blob = f"http://localhost:5000/v2/team/base/blobs/{layer_digests(None, image)[0]}"
    puller.popen(["curl", "-sS", "--limit-rate", SLOWLY, "-o", "/dev/null", blob])


def _as_html(output: str) -> str:
    """Return what a command printed on a terminal as HTML, with its colours."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(
        Text("$ tunnelmgr list --all", style="bold"), Text.from_ansi(output.replace("\r", "").rstrip()), sep="\n"
    )
    return console.export_html(inline_styles=True)


if __name__ == "__main__":
    raise SystemExit(main())
