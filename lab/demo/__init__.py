"""The demo: the product's main job, step by step, with real parts on this machine.

Root sees all of it (`fleet`); an ordinary user sees one agent on loopback (`single_agent`).
"""

import os
import signal
import tempfile
from pathlib import Path

from lab.demo import fleet, single_agent
from lab.demo.progress import Progress
from lab.processes import LabError
from tunnelmgr.errors import TunnelmgrError


def run_demo(*, keep: bool) -> int:
    """Run the demo and return its exit status: 0 only if every step succeeded."""
    progress = Progress()
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    show = single_agent.show if os.geteuid() else fleet.show
    with tempfile.TemporaryDirectory(prefix="tunnelmgr-demo-") as folder:
        Path(folder).chmod(0o755)  # the agents' own users pass through it
        try:
            show(progress, Path(folder), keep=keep)
        except (LabError, TunnelmgrError) as failed:
            progress.fail(str(failed))
            return 1
        except KeyboardInterrupt:
            return 130
    progress.succeed()
    return 0
