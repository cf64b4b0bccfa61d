"""Reading host keys from an instance's console, where cloud-init prints them once.

Any program that can write to the console can write a block, and the console also shows tables of users' keys. So the
evidence is exactly one complete block, and in it only complete lines. A line ends at LF or CR LF and nowhere else:
Python's `splitlines` also ends one at VT, FF, FS, GS, RS, NEL, U+2028, U+2029 and a single CR, so that one line which a
program gets into the log could look like a whole block.
https://cloudinit.readthedocs.io/en/latest/reference/modules.html#mod-cc-keys-to-console
"""

import re
import unicodedata

from tunnelmgr.core.host_key import HOST_KEY_TYPES, parse_key, type_of

_BEGIN = "-----BEGIN SSH HOST KEY KEYS-----"
_END = "-----END SSH HOST KEY KEYS-----"
_KEY = re.compile(rf"(?:^|[ :\]])({'|'.join(HOST_KEY_TYPES)}) ([A-Za-z0-9+/]+={{0,2}})(?: \S.*)?$")
_CONTROL = {"Cc", "Zl", "Zp"}
"""The Unicode categories of control characters and of line and paragraph separators."""


def host_keys(console: str) -> tuple[str, ...]:
    """Return the keys of the block as `type base64`, sorted.

    Raises ValueError, with the reason, if there is no evidence: no block, an incomplete one, several that differ, a
    line that is not a key or contains a control character, or two keys of one type, of which a machine has one.
    """
    blocks = _blocks(console.replace("\r\n", "\n").removesuffix("\n").split("\n"))
    if not blocks:
        raise ValueError("no host key block yet")
    if len(set(blocks)) > 1:
        raise ValueError("several host key blocks, which differ")
    return blocks[0]


def _blocks(lines: list[str]) -> list[tuple[str, ...]]:
    blocks: list[tuple[str, ...]] = []
    inside: list[str] | None = None
    for raw in lines:
        line = raw.strip(" ")
        in_block = line.endswith((_BEGIN, _END)) or inside is not None
        if in_block and any(unicodedata.category(char) in _CONTROL for char in line):
            raise ValueError("a control character in the host key block")
        if line.endswith(_BEGIN):
            if inside is not None:
                raise ValueError("a host key block begins inside another")
            inside = []
        elif line.endswith(_END):
            if not inside:
                raise ValueError("a host key block is empty, or ends without a beginning")
            blocks.append(_distinct(inside))
            inside = None
        elif inside is not None:
            inside.append(_key(line))
    if inside is not None:
        raise ValueError("the host key block is incomplete")
    return blocks


def _distinct(keys: list[str]) -> tuple[str, ...]:
    found = tuple(sorted(set(keys)))
    kinds = [type_of(key) for key in found]
    doubled = [kind for kind in HOST_KEY_TYPES if kinds.count(kind) > 1]
    if doubled:
        raise ValueError(f"a host key block has several keys of type {doubled[0]}; a machine has one")
    return found


def _key(line: str) -> str:
    found = _KEY.search(line)
    if found is None:
        raise ValueError("a line in the host key block is not a key")
    try:
        return parse_key(f"{found[1]} {found[2]}")
    except ValueError as invalid:
        raise ValueError(f"in the host key block, {invalid}") from invalid
