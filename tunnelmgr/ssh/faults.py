"""The exceptions of asyncssh, for the places where they are translated into ours."""

from typing import Final

import asyncssh

FAULTS: Final = (
    asyncssh.Error,
    asyncssh.ChannelListenError,
    OSError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What asyncssh raises: its own errors, and those of its parser on invalid input from a server."""
