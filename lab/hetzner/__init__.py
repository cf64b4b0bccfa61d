"""A stand-in for Hetzner Cloud's API, whose servers and failures tests control.

`HetznerCloud` serves it in this process; `HetznerService` runs it as a process on a machine of the lab. Both take the
same commands.
"""

from lab.hetzner.client import HetznerCloud, HetznerService

__all__ = ["HetznerCloud", "HetznerService"]
