"""A look-alike of Hetzner Cloud's API that launches, rebuilds, deletes and fails on command.

`HetznerCloud` serves it within this process; `HetznerService` on a machine of the lab. Both take the same commands.
"""

from lab.hetzner.client import HetznerCloud, HetznerService

__all__ = ["HetznerCloud", "HetznerService"]
