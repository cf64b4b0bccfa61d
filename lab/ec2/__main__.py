"""Serve the stand-in for EC2: `python -m lab.ec2 --listen 127.0.0.1:5556`."""

from __future__ import annotations

import argparse

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from lab.ec2.server import Ec2Api


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m lab.ec2", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:5556", metavar="HOST:PORT")
    host, _, port = parser.parse_args().listen.rpartition(":")
    app = Ec2Api(DomainDispatcherApplication(create_backend_app))
    make_server(host, int(port), app, threaded=True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    main()
