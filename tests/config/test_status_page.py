"""The keys of the status page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import load


def test_the_page_has_own_names_and_can_be_left_out(write: Callable[[str], Path]) -> None:
    """By default the page is served, and under no name."""
    head = '[controller]\nmetrics = "127.0.0.1:9750"\n'
    tail = '[ssh]\nkey = "KEYFILE"\n'

    plain = load(write(head + tail)).controller
    named = load(write(f'{head}metrics_names = ["registry-1.example"]\nmetrics_page = false\n{tail}')).controller
    assert (plain.metrics_names, plain.metrics_page) == ([], True)
    assert (named.metrics_names, named.metrics_page) == (["registry-1.example"], False)


@pytest.mark.parametrize("name", ["Registry-1", "registry-1:9750", "http://registry-1", "", "-x", "a" * 254])
def test_a_name_that_no_host_header_has_is_a_problem(problems: Callable[[str], list[str]], name: str) -> None:
    """A name with a port, a scheme or capitals would never match, and is reported with what to write."""
    (problem,) = problems(f"""
        [controller]
        metrics_names = ["{name}"]
        [ssh]
        key = "KEYFILE"
        """)

    assert problem.startswith("controller.metrics_names[0]: write a host name in lower case")
