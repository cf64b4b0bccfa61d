"""`python -m lab`: the demo, which `make demo` runs."""

import argparse

from lab.demo import run_demo


def main() -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Run the product with real parts on this machine: a registry, agents, an EC2 API and an impostor. "
        "As root, each agent is a network namespace; as an ordinary user, there is one agent, on loopback.",
        epilog="example: make demo KEEP=1",
    )
    parser.add_argument("--keep", action="store_true", help="keep everything running at the end, until Ctrl-C")
    return run_demo(keep=parser.parse_args().keep)


if __name__ == "__main__":
    raise SystemExit(main())
