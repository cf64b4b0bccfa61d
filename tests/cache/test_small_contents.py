"""What is kept in memory: verified, small, and the most recently used."""

from tests.gate.docker_registry import digest_of
from tunnelmgr.cache.small_contents import MAX_SMALL_BYTES, SmallContents


def test_the_least_recently_used_content_leaves_first() -> None:
    """Beyond the limit, the content whose last use is the oldest leaves."""
    kept = SmallContents(limit=30)
    contents = [bytes([number]) * 10 for number in range(4)]
    one, two, three, four = map(digest_of, contents)
    for content in contents[:3]:
        assert kept.add(digest_of(content), content)
    assert kept.find(one) == contents[0]

    assert kept.add(four, contents[3])

    assert [kept.find(digest) is not None for digest in (one, two, three, four)] == [True, False, True, True]
    assert kept.octets == 30


def test_a_content_counts_once_and_only_if_it_is_small_and_the_digest_is_right() -> None:
    """The same content again takes no more room, and a large one or one with another digest is not kept."""
    kept, large = SmallContents(), bytes(MAX_SMALL_BYTES + 1)

    assert kept.add(digest_of(b"small"), b"small")
    assert kept.add(digest_of(b"small"), b"small")
    assert kept.add(digest_of(large), large)
    assert not kept.add(digest_of(b"right"), b"wrong")

    assert (kept.octets, kept.find(digest_of(large)), kept.find(digest_of(b"right"))) == (5, None, None)
