"""The console script, and `python -m tunnelmgr`."""

import gc


def main() -> None:
    """Run the command line."""
    gc.disable()  # importing makes no garbage, and searching for some would take a tenth of the time
    from tunnelmgr.cli import app  # noqa: PLC0415 - see above

    gc.enable()
    app(prog_name="tunnelmgr")


if __name__ == "__main__":
    main()
