"""Exports of a log, checked without the broker: whatever was done to one is found, and where."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloister import merkle
from cloister.broker import audit_proof
from cloister.broker.audit import AuditDamaged, Fact, encode_entry, make_entry
from cloister.broker.audit_proof import (
    MAX_LINE,
    block_size,
    bounded_lines,
    export_header,
    export_lines,
    verify_entry,
    verify_export,
)
from cloister.broker.tree_head import (
    HeadRefused,
    SignedHead,
    TreeHead,
    cosign,
    log_id,
    parse_head,
    sign_head,
    with_cosignatures,
)
from witness_parts import NOW, signer, witness_keys

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
LOG_KEY = KEY.public_key().public_bytes_raw()
KEYS = witness_keys("anna", "ben", "cleo")
SIZE = 20


def entry(number: int, reason: str = "") -> bytes:
    fact = Fact("release", "accepted", resource="default/key/demo", reason=reason or f"release {number}")
    return encode_entry(
        make_entry(fact, number=number, now=NOW + number, changes=(), state=number.to_bytes(32, "big"))
    )


ENTRIES = [entry(number) for number in range(SIZE)]


def grown(entries: list[bytes]) -> merkle.Tree:
    tree = merkle.Tree()
    tree.append_many(merkle.leaf_hash(body) for body in entries)
    return tree


def head(entries: list[bytes], *names: str, state: str | None = None) -> SignedHead:
    size = len(entries)
    plain = TreeHead(
        log=log_id(LOG_KEY),
        size=size,
        root=grown(entries).root().hex(),
        state=state or max(size - 1, 0).to_bytes(32, "big").hex(),
        time=NOW,
    )
    signed = sign_head(plain, KEY)
    return with_cosignatures(signed, tuple(cosign(signed.head, signer(name)) for name in names))


def export(entries: list[bytes] = ENTRIES, *names: str) -> list[bytes]:
    return list(export_lines(LOG_KEY, head(entries, *names), entries))


def check(lines: list[bytes], *, threshold: int = 0, **options: SignedHead | None) -> audit_proof.Summary:
    return verify_export(lines, log_key=LOG_KEY, witnesses=KEYS, threshold=threshold, **options)


def test_a_whole_export_is_what_its_head_says() -> None:
    summary = check(export(ENTRIES, "anna", "cleo"), threshold=2)
    assert (summary.size, summary.root) == (SIZE, grown(ENTRIES).root().hex())
    assert (summary.log_key, summary.time) == (LOG_KEY, NOW)
    assert summary.witnesses == {"anna", "cleo"}


def test_an_export_without_its_last_line_of_hashes_is_as_good() -> None:
    assert check(export()[:-1]).size == SIZE


def test_the_log_of_no_entries_can_be_exported() -> None:
    assert check(export([])).size == 0
    assert check([export_header(LOG_KEY, head([])) + b"\n"]).size == 0


def test_an_export_extends_each_head_that_was_kept() -> None:
    for size in range(SIZE + 1):
        assert check(export(), extends=head(ENTRIES[:size])).size == SIZE


def swapped(lines: list[bytes], one: int, other: int) -> list[bytes]:
    lines = list(lines)
    lines[one], lines[other] = lines[other], lines[one]
    return lines


ATTACKS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "the last entry is cut": (lambda lines: [*lines[:-2], lines[-1]], "ends before entry 19 of 20"),
    "everything behind the header is cut": (lambda lines: lines[:1], "ends before entry 0 of 20"),
    "an entry in the middle is cut": (lambda lines: [*lines[:6], *lines[7:]], "audit entry 5 "),
    "the first entry is cut": (lambda lines: [lines[0], *lines[2:]], "audit entry 0 "),
    "two entries are swapped": (lambda lines: swapped(lines, 4, 9), "audit entry 3 "),
    "an entry is there twice": (lambda lines: [*lines[:6], lines[5], *lines[6:]], "audit entry 5 "),
    "an entry is rewritten": (
        lambda lines: [*lines[:6], entry(5, "nothing") + b"\n", *lines[7:]],
        "among entry 5",
    ),
    "the last entry is rewritten": (
        lambda lines: [*lines[:-2], entry(19, "nothing") + b"\n", lines[-1]],
        "among entry 19",
    ),
    "an entry is rewritten, and no hashes say which": (
        lambda lines: [*lines[:6], entry(5, "nothing") + b"\n", *lines[7:-1]],
        "among entries 0 to 19",
    ),
    "an entry is rewritten, and its hash": (
        lambda lines: [lines[0], *export([*ENTRIES[:5], entry(5, "nothing"), *ENTRIES[6:]])[1:]],
        "among entries 0 to 19",
    ),
    "an entry is added": (
        lambda lines: [*lines[:-1], entry(20) + b"\n"],
        "an entry 20, and its head covers 20",
    ),
    "the hashes are exchanged": (lambda lines: [*lines[:-1], export(ENTRIES[:4])[-1]], "hashes at the end"),
    "something follows the end": (lambda lines: [*lines, lines[5]], "goes on behind its end"),
    "there are two ends": (lambda lines: [*lines, lines[-1]], "goes on behind its end"),
    "the end is cut": (lambda lines: [*lines[:-1], lines[-1][:-5]], "the end of the export is cut"),
    "the end is something else": (lambda lines: [*lines[:-1], b'{"blocks":1}\n'], "export's end"),
    "a line is cut": (lambda lines: [*lines[:6], lines[6][:-1]], "entry 5 of the export is cut"),
    "a line is endless": (lambda lines: [*lines[:6], b" " * MAX_LINE + b"\n"], "entry 5 of the export"),
    "an entry is written in another way": (
        lambda lines: [*lines[:6], lines[6].replace(b":", b": ", 1), *lines[7:]],
        "audit entry 5 ",
    ),
    "an entry is no JSON": (lambda lines: [*lines[:6], b"{\n", *lines[7:]], "audit entry 5 "),
    "there is nothing": (lambda _: [], "the header of the export is cut"),
    "the header is an entry": (lambda lines: lines[1:], "the export"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_damaged_export_is_refused_with_the_place(attack: str) -> None:
    attempt, found = ATTACKS[attack]
    with pytest.raises(AuditDamaged) as caught:
        check(attempt(export()))
    assert found in caught.value.what


def test_an_export_of_another_log_is_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    public = other.public_key().public_bytes_raw()
    plain = parse_head(head(ENTRIES).head)
    theirs = sign_head(
        TreeHead(log=log_id(public), size=SIZE, root=plain.root, state=plain.state, time=NOW), other
    )
    lines = list(export_lines(public, theirs, ENTRIES))
    with pytest.raises(AuditDamaged, match="another log than the one that is pinned"):
        check(lines)
    assert verify_export(lines, log_key=None, witnesses={}, threshold=0).log_key == public
    # The pinned key in the header, and the head of the other log:
    with pytest.raises(HeadRefused):
        check([export_header(LOG_KEY, theirs) + b"\n", *lines[1:]])


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ((), "0 witnesses"),
        (("anna",), "1 witnesses"),
        (("anna", "anna"), "twice"),
        (("anna", "mallory"), "stranger"),
    ],
)
def test_an_export_that_too_few_witnesses_saw_is_refused(names: tuple[str, ...], error: str) -> None:
    with pytest.raises(HeadRefused, match=error):
        check(export(ENTRIES, *names), threshold=2)


def test_a_log_that_was_rewritten_since_a_head_was_kept_is_refused() -> None:
    other = [*ENTRIES[:5], entry(5, "nothing"), *ENTRIES[6:]]
    assert check(export(other), extends=head(ENTRIES[:5])).size == SIZE
    with pytest.raises(AuditDamaged, match="first 6 entries are not what they were"):
        check(export(other), extends=head(ENTRIES[:6]))
    with pytest.raises(AuditDamaged, match="20 entries before, 12 now"):
        check(export(ENTRIES[:12]), extends=head(ENTRIES))


def test_a_head_of_another_state_than_the_last_entry_tells_of_is_refused() -> None:
    lines = list(export_lines(LOG_KEY, head(ENTRIES, state="0" * 64), ENTRIES))
    with pytest.raises(AuditDamaged, match="another state"):
        check(lines)


@given(st.data())
def test_no_bit_of_an_export_can_be_flipped_and_no_prefix_passes(data: st.DataObject) -> None:
    whole = b"".join(export())
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    end = whole.rindex(b"\n", 0, -1) + 1  # the last line may be left away as a whole, and nothing else
    prefix = whole[: data.draw(st.integers(0, len(whole) - 1).filter(lambda length: length != end))]
    for attempt in (bytes(flipped), prefix):
        with pytest.raises((AuditDamaged, HeadRefused)):
            check(attempt.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("size", "length"), [(0, 1), (1, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 4), (1_000_000, 256)]
)
def test_runs_of_entries_are_as_short_as_the_last_line_allows(size: int, length: int) -> None:
    assert block_size(size) == length


@pytest.mark.parametrize("place", [0, 7, 8, 16, 18, 19])
def test_in_a_long_log_the_run_of_the_altered_entry_is_named(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_proof, "MAX_BLOCKS", 3)
    lines = export()
    altered = [*lines[: place + 1], entry(place, "nothing") + b"\n", *lines[place + 2 :]]
    start = place // 8 * 8
    with pytest.raises(AuditDamaged) as caught:
        check(altered)
    assert caught.value.what.endswith(f"among entries {start} to {min(start + 7, 19)}")


def test_lines_are_read_up_to_a_bound() -> None:
    lines = list(bounded_lines(io.BytesIO(b"".join(export()) + b"x" * (MAX_LINE + 10))))
    assert lines[: SIZE + 2] == export()
    assert [len(line) for line in lines[SIZE + 2 :]] == [MAX_LINE + 2, 8]


def test_one_entry_is_proven_by_its_path_alone() -> None:
    tree, verified = grown(ENTRIES), parse_head(head(ENTRIES).head)
    assert verify_entry(ENTRIES[7], 7, tree.inclusion(7), verified).number == 7
    for body, number, path in (
        (ENTRIES[8], 7, tree.inclusion(7)),
        (ENTRIES[7], 8, tree.inclusion(7)),
        (ENTRIES[7], 7, tree.inclusion(8)),
        (entry(7, "nothing"), 7, tree.inclusion(7)),
        (ENTRIES[7], 20, tree.inclusion(7)),
    ):
        with pytest.raises(AuditDamaged, match="is not in the log of 20 entries"):
            verify_entry(body, number, path, verified)


def test_an_entry_in_the_place_of_another_is_refused_even_if_the_log_has_it_there() -> None:
    wrong = [entry(3), *ENTRIES[1:]]
    with pytest.raises(AuditDamaged, match="audit entry 0 "):
        verify_entry(wrong[0], 0, grown(wrong).inclusion(0), parse_head(head(wrong).head))
