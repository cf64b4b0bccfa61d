"""The status page of a controller with injured agents: it alone tells why each of them has no tunnel."""

import http.client
import re
from collections.abc import Iterable
from functools import partial
from html import unescape
from typing import TYPE_CHECKING

import pytest

from lab.processes import until
from tests.acceptance.injuries import INJURIES, start_injured
from tests.control.unix_http import OnSocket

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance


def page(field: "Field", path: str) -> str:
    """Return the text of a page, as it is on the controller's socket."""
    connection = OnSocket(field.controller.folder / "tunnelmgr.sock")
    try:
        connection.request("GET", path)
        answer: http.client.HTTPResponse = connection.getresponse()
        assert answer.status == 200
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.read().decode())).split())
    finally:
        connection.close()


def page_with(field: "Field", path: str, texts: Iterable[str]) -> str:
    """Return the text of a page if it has all of these texts: an agent may be in the middle of another dial."""
    found = page(field, path)
    return found if all(text in found for text in texts) else ""


def test_the_page_tells_why_each_of_twelve_agents_has_no_tunnel(field: "Field") -> None:
    """Each agent's page has its phase, its error, the reason, and the cure in words; the overview has all of them."""
    start_injured(field)

    overview = page(field, "/?sort=phase")
    assert "1 up" in overview
    for name, injury in INJURIES.items():
        texts = (injury.phase, injury.code, injury.why)
        text = until(partial(page_with, field, f"/agents/static:{name}", texts), f"the page of {name} has {texts}")
        assert injury.cure in text.partition("What to do")[2], (name, text)
        assert injury.code in overview
        command = f'tunnelmgr release static:{name} --reason "…"'
        assert (command in text) == (injury.phase == "quarantined")
    assert "What to do" not in page(field, "/agents/static:well")
