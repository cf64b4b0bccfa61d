r"""The hash chain of the audit log: each entry has a `link`, which covers it and the link of the entry before it.

An entry is one line of JSON whose last field is `link`:

    {"time":…,"sequence":7,"code":…,…,"link":"64 hexadecimal digits"}

`link` is the SHA-256 of the previous link's digits, a line feed, and the line's bytes before the last `,"link"`. So a
shell can compute it: `printf '%s\n%s' PREVIOUS BEGINNING | sha256sum`.

- The first entry that a process writes, and the first entry of each file, also have `previous`: the number and the link
  of the entry before. So each file can be verified alone, and a missing file is found. A new chain begins with NO_LINK.
- Such an entry has `damage` if there is anything after the last entry of the chain in its file, for example the
  beginning of a line that a crash has cut: the size and the SHA-256 of these bytes. Nothing is removed from a file.
- An entry `audit-sealed` has a `seal`, a signature of the previous link and of the entry: see audit_seal.py.
- Lost entries leave a gap in the numbers, but the links continue over it.

audit_file.py writes this, audit_verify.py reads it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

NO_LINK: Final = "0" * 64
"""The link before the first entry of a chain."""
SEALED: Final = "audit-sealed"
"""The code of an entry that seals the chain."""
_LINE = re.compile(rb'(\{.*),"link":"([0-9a-f]{64})"\}\n', re.DOTALL)
_SEALED_BODY = re.compile(rb'(.*),"seal":"([A-Za-z0-9+/]+=*)"', re.DOTALL)
_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
_SEQUENCE = re.compile(rb'"sequence": ?([0-9]{1,18})[,}]')

AuditEntry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain, or of a part of it: its number and its link."""

    sequence: int = 0
    link: str = NO_LINK

    def as_json(self) -> dict[str, object]:
        """Return the value of the field `previous`."""
        return {"sequence": self.sequence, "link": self.link}

    @classmethod
    def from_json(cls, value: object) -> "Head | None":
        """Return what `as_json` returned; None for any other value."""
        match value:
            case {"sequence": int(sequence), "link": str(link)} if re.fullmatch("[0-9a-f]{64}", link):
                return cls(sequence, link)
            case _:
                return None


START: Final = Head()
"""What is before the first entry of a chain."""


class ChainedLine(NamedTuple):
    """A line of the chain: its bytes before `,"link"`, its number, and its link."""

    body: bytes
    sequence: int
    link: str


class Signer(Protocol):
    """Makes seals; audit_seal.py has the one with a key."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key."""
        ...

    def seal(self, previous: str, body: bytes) -> str:
        """Return the seal of an entry and of everything before it, as base64."""
        ...


def link_after(previous: str, body: bytes) -> str:
    """Return the link of an entry."""
    return hashlib.sha256(previous.encode() + b"\n" + body).hexdigest()


def parse_line(line: bytes) -> ChainedLine | None:
    """Return the parts of a whole line of a chain, None for any other line; the link is not verified."""
    found = _LINE.fullmatch(line)
    number = sequence_in(found[1]) if found else None
    return None if found is None or number is None else ChainedLine(found[1], number, found[2].decode())


def sequence_in(line: bytes) -> int | None:
    """Return the number in a line or in its beginning, with or without a link; None if it has none."""
    # The first match is the entry's own field: quotes within a string are escaped, and `previous` comes later.
    found = _SEQUENCE.search(line + b"}")
    return int(found[1]) if found and line.startswith(b"{") else None


def split_seal(body: bytes) -> tuple[bytes, str] | None:
    """Return what a seal covers of its entry, and the seal; None if the entry has no seal."""
    found = _SEALED_BODY.fullmatch(body)
    return (found[1], found[2].decode()) if found else None


def next_lines(
    head: Head, entries: Iterable[AuditEntry], marks: Mapping[str, object], signer: Signer | None
) -> Iterator[tuple[bytes, Head]]:
    """Yield the line of each entry with the head after it; the first one has `marks` as further fields."""
    for entry in entries:
        sealing = signer is not None and entry["code"] == SEALED
        marked = {**entry, **marks, **({"signer": signer.fingerprint} if signer and sealing else {})}
        body = _ENCODER.encode(marked).encode()[:-1]
        if signer and sealing:
            body += f',"seal":"{signer.seal(head.link, body)}"'.encode()
        head, marks = Head(entry["sequence"], link_after(head.link, body)), {}
        yield body + f',"link":"{head.link}"}}\n'.encode(), head


@dataclass(slots=True)
class Foreign:
    """Bytes that do not belong to the chain, line by line; a line feed at their end does not count.

    A line that is too long to be an entry comes in parts, see audit_files.py.
    """

    size: int = 0
    lines: int = 0
    entries: int = 0  # whole lines with a number, as entries have
    is_open: bool = False  # the last line has no end
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, line: bytes) -> None:
        """Add a line or a part of one."""
        continues = self.is_open
        if self.size and not continues:
            self._count(b"\n")
        self.is_open = not line.endswith(b"\n")
        self._count(line.removesuffix(b"\n"))
        self.lines += not continues
        self.entries += line.endswith(b"}\n") and (continues or sequence_in(line) is not None)

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    def as_json(self) -> dict[str, object]:
        """Return the value of the field `damage`."""
        return {"bytes": self.size, "sha256": self._hash.hexdigest()}
