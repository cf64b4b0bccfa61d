"""Accepts the installed release of asyncssh as verified in `make newest`, which is to find out whether it is."""

import os

import asyncssh

from tunnelmgr.dataplane import fast_path

if "TRY_NEWEST_ASYNCSSH" in os.environ:
    fast_path.VERIFIED_RELEASES |= {asyncssh.__version__}
