"""Host keys on a console: exactly one complete block of complete lines is evidence, and nothing else."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.ec2 import host_key_console
from tunnelmgr.trust.console_block import host_keys

BEGIN, END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"


def made(kind: str, *fields: bytes) -> str:
    """Return a public key as `type base64`."""
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(blob).decode()}"


ED25519 = made("ssh-ed25519", bytes(range(32)))
OTHER = made("ssh-ed25519", bytes(32))
RSA = made("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xab" * 256)
ECDSA = made("ecdsa-sha2-nistp256", b"nistp256", b"\x04" + b"\x07" * 64)


def block(*lines: str) -> str:
    """Return a block of these lines."""
    return "\n".join((BEGIN, *lines, END)) + "\n"


def test_the_keys_of_a_booted_instance_are_found() -> None:
    """The block is found among boot messages, a table of users' keys, and fingerprints."""
    assert host_keys(host_key_console([ED25519, RSA, ECDSA])) == tuple(sorted([ED25519, RSA, ECDSA]))


def test_comments_and_carriage_returns_are_no_part_of_a_key() -> None:
    """A serial console ends lines with CR LF, and cloud-init adds the comment of the key."""
    assert host_keys(block(f"{ED25519} root@ip-10-0-0-1").replace("\n", "\r\n")) == (ED25519,)


@pytest.mark.parametrize("prefix", ["<14>Nov 23 18:00:07 ec2: ", "[    7.930144] cloud-init[598]: ", "ci-info: ", "  "])
def test_lines_may_carry_a_syslog_prefix(prefix: str) -> None:
    """Images that print the block through syslog put a prefix before each of its lines."""
    text = "".join(f"{prefix}{line}\n" for line in block(f"{ED25519} root@host", RSA).splitlines())

    assert host_keys(text) == tuple(sorted([ED25519, RSA]))


def test_the_same_block_twice_is_one() -> None:
    """Identical blocks, such as one from syslog and one from cloud-init, are evidence."""
    assert host_keys(block(ED25519, RSA) + "between\n" + block(RSA, ED25519)) == tuple(sorted([ED25519, RSA]))


def test_keys_outside_the_block_are_ignored() -> None:
    """Keys outside the block, such as authorized keys, are ignored."""
    text = f"{OTHER} admin@laptop\n{block(ED25519)}{OTHER} somebody\n"

    assert host_keys(text) == (ED25519,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no host key block yet"),
        (f"{ED25519} root@host\n", "no host key block yet"),
        (host_key_console([ED25519]).replace(BEGIN, "").replace(END, ""), "no host key block yet"),
        (block(ED25519) + block(OTHER), "several host key blocks, which differ"),
        (block(ED25519) + block(ED25519, RSA), "several host key blocks, which differ"),
        (f"{BEGIN}\n{ED25519}\n", "the host key block is incomplete"),
        (block(ED25519) + f"{BEGIN}\n{ED25519}\n", "the host key block is incomplete"),
        (f"{ED25519}\n{END}\n", "ends without a beginning"),
        (f"{BEGIN}\n{END}\n", "empty"),
        (f"{BEGIN}\n{ED25519}\n{block(OTHER)}", "begins inside another"),
        (block(ED25519, "[   12.3] random: crng init done"), "a line in the host key block is not a key"),
        (block(ED25519, "| ssh-rsa | 3b:1d:8e:52 |    -    | operator |"), "a line in the host key block is not a key"),
        (block(ED25519, ""), "a line in the host key block is not a key"),
        (block(f"x{ED25519}"), "a line in the host key block is not a key"),
        (block(ED25519.replace("ed25519", "dss")), "a line in the host key block is not a key"),
        (block(ED25519[:-1]), "truncated or not base64"),
        (block(ED25519[:-4]), "truncated"),
        (block(RSA.replace("ssh-rsa", "ssh-ed25519")), "of type 'ssh-rsa', but its line says ssh-ed25519"),
        (block(ED25519, RSA, OTHER), "has several keys of type ssh-ed25519"),
        (block(f"{ED25519}\r root@host"), "a control character in the host key block"),
        (block(f"{ED25519} \x1b[31mroot@host"), "a control character in the host key block"),
        (f"\v{block(ED25519)}", "a control character in the host key block"),
        (block(ED25519).replace(END, f"\x85{END}"), "a control character in the host key block"),
    ],
)
def test_anything_else_is_not_evidence_and_says_why(text: str, why: str) -> None:
    """Anything but one complete block raises the reason instead of returning doubtful keys."""
    with pytest.raises(ValueError, match=why):
        host_keys(text)


def test_a_block_that_says_begin_in_mid_line_is_taken_for_a_begin() -> None:
    """A program that prints the marker can only prevent evidence, not replace it."""
    with pytest.raises(ValueError, match="begins inside another"):
        host_keys(f"a user writes {BEGIN}\n{block(ED25519)}")


lines = st.sampled_from([BEGIN, END, ED25519, f"{OTHER} comment", RSA, "noise", "", f"<14>x: {BEGIN}", f"x: {ED25519}"])


@settings(derandomize=True, database=None, max_examples=300)
@given(text=st.lists(lines, max_size=12).map("\n".join) | st.text(max_size=200))
def test_any_console_yields_complete_keys_or_a_reason(text: str) -> None:
    """Random consoles raise ValueError or return complete keys from within a block."""
    try:
        found = host_keys(text)
    except ValueError as why:
        found = ()
        assert str(why)  # noqa: PT017 - either of two ends is right

    assert set(found) <= {ED25519, OTHER, RSA}
    assert not found or (BEGIN in text and END in text)


# --- a program that gets one line into the log ---

SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r"
"""Everything at which `str.splitlines` ends a line, except LF."""
forged = st.lists(st.sampled_from([BEGIN, END, OTHER, f"{OTHER} root@host", "x", ""]), min_size=1, max_size=6)
one_line = st.tuples(st.sampled_from(SEPARATORS), forged).map(lambda drawn: drawn[0].join(drawn[1]))
text_line = st.text(st.characters(exclude_characters="\n"), max_size=40)
fuzzed = settings(derandomize=True, database=None, max_examples=300)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_one_line_is_not_a_block_with_any_separator(separator: str) -> None:
    """A log message with text of a user may contain everything of a block except its line ends."""
    line = separator.join((BEGIN, OTHER, END))

    with pytest.raises(ValueError, match="block"):
        host_keys(f"boot\r\n[12.3] sshd: invalid user {line}\r\nboot\r\n")


@fuzzed
@given(line=one_line | text_line, at=st.integers(0, 12))
def test_one_line_without_the_true_block_is_never_evidence(line: str, at: int) -> None:
    """A forged line without the true block is not evidence, at any place in the console."""
    boot = [f"[    {number}.0] boot" for number in range(12)]
    boot.insert(at, line)

    with pytest.raises(ValueError, match="block"):
        host_keys("\r\n".join(boot))


@fuzzed
@given(line=one_line | text_line, at=st.integers(0, 40))
def test_one_line_beside_the_true_block_never_replaces_its_keys(line: str, at: int) -> None:
    """A forged line can only prevent that the true block is evidence."""
    console = host_key_console([ED25519, RSA]).split("\r\n")
    console.insert(at, line)

    try:
        found = host_keys("\r\n".join(console))
    except ValueError:
        return

    assert found == tuple(sorted([ED25519, RSA]))


@fuzzed
@given(char=st.characters(categories=["Cc", "Zl", "Zp"], exclude_characters="\n"), at=st.integers(1, 400))
def test_a_control_character_within_the_block_makes_it_no_evidence(char: str, at: int) -> None:
    """A block with a control character is refused, because a true block has none."""
    true = block(f"{ED25519} root@host", f"{RSA} root@host")
    at = min(at, len(true) - 2)
    spoiled = true[:at] + char + true[at:]
    if "\r\n" in spoiled:
        return  # that ends a line as LF does

    with pytest.raises(ValueError, match="block"):
        host_keys(spoiled)
