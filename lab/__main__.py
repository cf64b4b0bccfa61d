"""`python -m lab`: the demo, which `make demo` runs."""

import argparse

from lab.demo import tell


def main() -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Show the whole path with real parts on this machine: registry, agents, a cloud API, a stranger. "
        "As root, each agent is a network namespace; as an ordinary user, one agent on loopback is shown.",
        epilog="example: make demo KEEP=1",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    return tell(keep=parser.parse_args().keep)


if __name__ == "__main__":
    raise SystemExit(main())
