"""tunnelmgr: a loopback-only registry for short-lived build agents, over SSH."""

try:
    from tunnelmgr._version import __version__
except ImportError:  # a checkout in which nothing was built or installed
    __version__ = "0.1.0.dev0"

__all__ = ["__version__"]
