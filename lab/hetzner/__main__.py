"""Serve the stand-in for Hetzner Cloud: `python -m lab.hetzner --listen 127.0.0.1:4011`."""

from __future__ import annotations

import argparse

from lab.hetzner.server import ApiServer, HetznerApi


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m lab.hetzner", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:4011", metavar="HOST:PORT")
    host, _, port = parser.parse_args().listen.rpartition(":")
    with ApiServer((host, int(port)), HetznerApi()) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
