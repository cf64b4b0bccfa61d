"""A stand-in for EC2's API, whose instances and failures tests control.

`Ec2Service` starts it as a process of its own, on a machine of the lab, and sends it commands over HTTP under `/_lab/`.
The server behind it is moto's.
"""

from lab.ec2.client import Ec2Service
from lab.ec2.console import host_key_console

__all__ = ["Ec2Service", "host_key_console"]
