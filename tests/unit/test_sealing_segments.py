"""The pure streaming AEAD: where segments lie, and what does not open."""

from __future__ import annotations

import pytest

from cloister.errors import FormatError, TamperedFile, TruncatedFile
from cloister.sealing.segments import (
    MAX_SIZE,
    PREAMBLE_SIZE,
    SEGMENT_SIZE,
    TAG_SIZE,
    Layout,
    SegmentCipher,
    layout_of_body,
    new_preamble,
)
from sealing_samples import patterned

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
OTHER = SEGMENT_SIZE - TAG_SIZE
KEY, PREAMBLE, DATA = bytes(range(32)), new_preamble(b"s" * 32, b"p" * 7), b"associated"


def cipher(key: bytes = KEY, preamble: bytes = PREAMBLE, data: bytes = DATA) -> SegmentCipher:
    return SegmentCipher(key, preamble, data, name="sample")


@pytest.mark.parametrize(
    ("size", "segments", "body"),
    [
        (0, 1, 56),
        (1, 1, 57),
        (FIRST - 1, 1, SEGMENT_SIZE - 1),
        (FIRST, 1, SEGMENT_SIZE),
        (FIRST + 1, 2, SEGMENT_SIZE + 17),
        (FIRST + OTHER, 2, 2 * SEGMENT_SIZE),
        (FIRST + OTHER + 1, 3, 2 * SEGMENT_SIZE + 17),
        (MAX_SIZE, 1 << 20, 1 << 40),
    ],
)
def test_a_size_has_one_layout_and_the_layout_one_size(size: int, segments: int, body: int) -> None:
    layout = Layout(size)
    assert (layout.segments, layout.body_size) == (segments, body)
    assert layout_of_body(body, name="x") == layout
    last = layout.plain(segments - 1)
    assert last.start + last.length == size
    block = layout.block(segments - 1)
    assert block.start + block.length == body


@pytest.mark.parametrize("size", [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + OTHER, 3 * SEGMENT_SIZE])
def test_every_byte_is_found_in_the_segment_that_holds_it(size: int) -> None:
    layout = Layout(size)
    for offset in {0, 1, FIRST - 1, FIRST, FIRST + OTHER - 1, FIRST + OTHER, size - 1}:
        if 0 <= offset < size:
            span = layout.plain(layout.segment_at(offset))
            assert span.start <= offset < span.start + span.length


@pytest.mark.parametrize("body", [0, 39, 40, 55, SEGMENT_SIZE + 1, SEGMENT_SIZE + 15, SEGMENT_SIZE + 16])
def test_a_body_length_that_no_plaintext_has_is_refused(body: int) -> None:
    with pytest.raises(TruncatedFile):
        layout_of_body(body, name="x")


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
def test_a_size_out_of_bounds_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        Layout(size)


def test_a_segment_opens_only_at_its_own_number_with_its_own_key() -> None:
    plain, sealed, out = patterned(100), bytearray(116), bytearray(100)
    cipher().seal_into(3, False, plain, sealed)
    cipher().open_into(3, False, sealed, out)
    assert out == plain
    attacks = {
        "another number": (cipher(), 4, False),
        "as the last": (cipher(), 3, True),
        "another key": (cipher(key=bytes(32)), 3, False),
        "another file": (cipher(data=b"associateD"), 3, False),
        "another salt": (cipher(preamble=new_preamble(b"S" * 32, b"p" * 7)), 3, False),
        "another prefix": (cipher(preamble=new_preamble(b"s" * 32, b"P" * 7)), 3, False),
    }
    for name, (opener, segment, last) in attacks.items():
        out = bytearray(b"x" * 100)
        with pytest.raises((TamperedFile, TruncatedFile)):
            opener.open_into(segment, last, sealed, out)
        assert not any(out), name


def test_a_middle_segment_in_the_place_of_the_last_is_called_truncation() -> None:
    sealed, out = bytearray(116), bytearray(100)
    cipher().seal_into(3, False, bytes(100), sealed)
    with pytest.raises(TruncatedFile, match="more followed"):
        cipher().open_into(3, True, sealed, out)


def test_a_preamble_of_another_length_byte_is_refused() -> None:
    with pytest.raises(TamperedFile):
        cipher(preamble=b"\x29" + PREAMBLE[1:])
    with pytest.raises(TamperedFile):
        cipher(preamble=PREAMBLE[:-1])


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(FormatError):
        cipher(key=bytes(16))
    with pytest.raises(FormatError):
        new_preamble(bytes(31), bytes(7))
