"""tunnelmgr: a loopback-only registry for short-lived build agents, over SSH."""

__version__ = "0.1.0"
