"""The console script, and `python -m tunnelmgr`."""

from tunnelmgr.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="tunnelmgr")


if __name__ == "__main__":
    main()
