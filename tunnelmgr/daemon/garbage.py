"""When garbage is collected: what is young as ever, what is old only when a bell rings.

A full collection looks at every object of every tunnel, and stops the loop for as long: 0.2 s with 1,000 tunnels.
CPython begins one whenever a quarter has been added to what is old, in the middle of whatever goes on. What makes
cycles here dies young, so that nearly all of it is found without; an ended tunnel leaves none
(`dataplane/exception_frames.py`).
"""

import gc
import time
from typing import Final

import structlog

log = structlog.get_logger(__name__)

YOUNG: Final = 2_000
"""Objects made and not yet gone before the young ones are looked at."""
ROUNDS: Final = 5
"""Such looks before the middle-aged are looked at too, which then takes the loop about 20 ms."""
NEVER: Final = 1_000_000_000


def spare_the_old() -> None:
    """Leave old objects alone from now on, except when `collect` is called."""
    gc.collect()
    gc.set_threshold(YOUNG, ROUNDS, NEVER)


def collect() -> None:
    """Look at everything."""
    began = time.monotonic()
    found = gc.collect()
    log.debug("garbage collected", found=found, took=time.monotonic() - began)
