"""Takes the pictures, in the network of the registry's machine.

`python -m lab.pictures` runs it as `python -m lab.pictures.camera FOLDER URL AGENT HTML`.
"""

import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, Page, expect

from lab.browser import running_browser

WIDTH = 1180
SCALE = 0.75
PAGE_HEIGHT = 1480
AGENT_HEIGHT = 640
TERMINAL = (
    "body{margin:0;background:#fff} pre{display:inline-block;margin:0;padding:14px 18px;font-size:13px!important}"
)


def main(folder: Path, url: str, agent: str, table: Path) -> None:
    """Take the pictures of the page, of an agent's page, and of a table that a command printed."""
    folder.mkdir(parents=True, exist_ok=True)
    with running_browser() as browser:
        page = _opened(browser, url, "light", PAGE_HEIGHT)
        expect(page.locator("#transfers tbody tr")).to_have_count(1)
        page.screenshot(path=folder / "page.png")
        page = _opened(browser, f"{url}agents/{quote(agent, safe='')}", "dark", AGENT_HEIGHT)
        page.screenshot(path=folder / "agent.png")
        page = browser.new_page(viewport={"width": 1400, "height": 100})
        page.set_content(table.read_text(encoding="utf-8"))
        page.add_style_tag(content=TERMINAL)
        page.locator("pre").screenshot(path=folder / "list.png")


def _opened(browser: Browser, url: str, scheme: str, height: int) -> Page:
    """Open a page and wait until it is live."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": height},
        device_scale_factor=SCALE,
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.goto(url)
    expect(page.locator("#live")).to_have_text("Live")
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
