"""An EC2 look-alike that launches, terminates, forgets and fails on command.

`Cloud` starts it and gives the commands; the server behind it is moto's, told over HTTP under `/_lab/`.
"""

from lab.ec2.client import Cloud
from lab.ec2.console import host_key_console

__all__ = ["Cloud", "host_key_console"]
