"""The manual pages, made from the documents by pandoc, which wraps the cells of their wide tables."""

import gzip
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from settings import ROOT, run

PAGES = (
    ("tunnelmgr", 1, "commands.md", "manage SSH tunnels from build agents to a loopback-only registry"),
    ("tunnelmgr.toml", 5, "configuration.md", "the configuration of tunnelmgr"),
)
"""Name, section, source in docs/, and the line that apropos(1) shows."""


def write_pages(folder: Path, version: str) -> None:
    """Write every page below a folder such as /usr/share/man, compressed."""
    for name, section, source, summary in PAGES:
        document = (ROOT / "docs" / source).read_text(encoding="utf-8")
        day = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC).date().isoformat()
        facts = {"title": name, "section": section, "date": day, "footer": f"tunnelmgr {version}"}
        metadata = [f"--metadata={key}:{value}" for key, value in facts.items()]
        page = folder / f"man{section}" / f"{name}.{section}"
        page.parent.mkdir(parents=True, exist_ok=True)
        text = page.with_suffix(".md")
        text.write_text(page_text(name, summary, document), encoding="utf-8")
        run("pandoc", "--standalone", "--from=gfm", "--to=man", *metadata, f"--output={page}", str(text))
        text.unlink()
        compress(page)


def page_text(name: str, summary: str, document: str) -> str:
    """Return a document as a page's text: its sections one level up, and links as their text alone."""
    lines = [f"# NAME\n\n{name} - {summary}\n\n# DESCRIPTION"]
    in_code = False
    for line in document.splitlines()[1:]:
        in_code ^= line.startswith("```")
        if in_code or line.startswith("    "):
            lines.append(line)
        else:
            lifted = re.sub(r"^#(?=#+ )", "", line)
            lines.append(re.sub(r"\[([^\]]+)\]\((?!https?:)[^)\s]*\)", r"\1", lifted))
    return "\n".join(lines) + "\n"


def compress(file: Path) -> None:
    """Replace a file by its compressed form, which contains neither a time nor a name."""
    compressed = gzip.compress(file.read_bytes(), 9, mtime=0)
    file.with_name(f"{file.name}.gz").write_bytes(compressed)
    file.unlink()
