"""Which tags a group may write once: the patterns of `immutable_tags`, and the tags that are exempt from them.

Tags that clients must rewrite are exempt: they list what refers to a manifest, and grow with each addition.

- `<algorithm>-<hex>` is the fallback of the OCI distribution spec, section "Referrers Tag Schema". The spec truncates
  the digest to 64 characters; a sha512 digest has 64, or all 128 from a client that does not truncate it.
- The same with `.sig`, `.att` or `.sbom` is where cosign stores signatures, attestations and bills of materials.

Only a pattern that begins with the algorithm, such as `sha256-*`, protects such a tag; `*` does not.
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
    """The compiled patterns of one group; false if there are none."""

    __slots__ = ("_globs", "_referrers")

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile the patterns; raises ValueError with the first invalid one."""
        given = tuple(patterns)
        for pattern in given:
            check_tag_glob(pattern)
        self._globs = GlobSet(given)
        self._referrers = GlobSet(pattern for pattern in given if pattern.startswith(_ALGORITHMS))

    def __bool__(self) -> bool:
        return bool(self._globs.patterns)

    def rule(self, tag: str) -> str | None:
        """Return the rule that protects a tag, such as `immutable_tags v*`, or None."""
        globs = self._referrers if is_referrers_tag(tag) else self._globs
        pattern = globs.find(tag)
        return None if pattern is None else f"immutable_tags {pattern}"


def is_referrers_tag(tag: str) -> bool:
    """Whether a tag lists what refers to the manifest whose digest is in its name."""
    return _REFERRERS.fullmatch(tag) is not None
