"""Serve the stand-in for S3: `python -m lab.s3 --listen 0.0.0.0:9000`."""

from __future__ import annotations

import argparse

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from lab.s3.server import S3Api


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m lab.s3", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:9000", metavar="HOST:PORT")
    host, _, port = parser.parse_args().listen.rpartition(":")
    app = S3Api(DomainDispatcherApplication(create_backend_app), int(port))
    make_server(host, int(port), app, threaded=True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    main()
