"""Which tags of a group may be written once: the patterns of `immutable_tags`, and the tags that are exempt from them.

Exempt are tags that a client has to rewrite, since they list what refers to a manifest and grow with each addition:

- `<algorithm>-<hex>`, the fallback of the OCI distribution spec, section "Referrers Tag Schema". The digest is cut to
  64 characters there, so a sha512 digest has 64, or all 128 from a client that does not cut it.
- the same with `.sig`, `.att` or `.sbom`, where cosign keeps signatures, attestations and bills of materials.

Such a tag is protected only by a pattern that begins with its algorithm, such as `sha256-*`; `*` does not include it.
"""

import re
from collections.abc import Iterable
from typing import Final

from tunnelmgr.core.globs import GlobSet, check_tag_glob

_REFERRERS: Final = re.compile(
    r"(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{64}(?:[0-9a-f]{64})?)(?:\.(?:sig|att|sbom))?",
)
_ALGORITHMS: Final = ("sha256-", "sha512-")


class ImmutableTags:
    """The patterns of one group, compiled; false where there are none."""

    __slots__ = ("_globs", "_referrers")

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile the patterns; raises ValueError that names the first bad one."""
        kept = tuple(patterns)
        for pattern in kept:
            check_tag_glob(pattern)
        self._globs = GlobSet(kept)
        self._referrers = GlobSet(pattern for pattern in kept if pattern.startswith(_ALGORITHMS))

    def __bool__(self) -> bool:
        return bool(self._globs.patterns)

    def rule(self, tag: str) -> str | None:
        """Return the rule that protects a tag, such as `immutable_tags v*`, or None."""
        globs = self._referrers if is_referrers_tag(tag) else self._globs
        pattern = globs.find(tag)
        return None if pattern is None else f"immutable_tags {pattern}"


def is_referrers_tag(tag: str) -> bool:
    """Whether a tag lists what refers to the manifest that it names."""
    return _REFERRERS.fullmatch(tag) is not None
