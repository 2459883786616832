"""Properties of sealed files: what was sealed comes back, and nothing else ever does."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatError, IndexMismatch, SealingError
from cloister.sealing.envelope import HEADER_SIZE, parse_header
from cloister.sealing.files import seal_file, unseal_into
from cloister.sealing.index import IndexEntry, check_path, verify_index
from cloister.sealing.reader import SealedReader
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE, TAG_SIZE, Layout, layout_of_body
from cloister.sealing.uri import parse_key_uri
from sealing_samples import KEK, OWNER, URI, Keys, patterned

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
OTHER = SEGMENT_SIZE - TAG_SIZE

edges = st.sampled_from([0, FIRST, FIRST + OTHER]).flatmap(lambda at: st.integers(max(0, at - 2), at + 2))
sizes = st.one_of(st.integers(0, 100), edges)


def sealed_bytes(content: bytes, workers: int = 1) -> tuple[bytes, IndexEntry]:
    with tempfile.TemporaryDirectory() as folder:
        plain, sealed = Path(folder, "plain"), Path(folder, "sealed")
        plain.write_bytes(content)
        entry = seal_file(plain, sealed, key_uri=URI, kek=KEK, workers=workers)
        return sealed.read_bytes(), entry


def opened(data: bytes, entry: IndexEntry | None = None) -> bytes:
    """Through random access."""
    reader = SealedReader(io.BytesIO(data), Keys(), name="it", expected=entry)
    return reader.read(0, reader.size)


def unsealed(data: bytes, entry: IndexEntry | None = None) -> bytes:
    """Through the parallel way, into a file."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "sealed")
        source.write_bytes(data)
        descriptor = os.open(Path(folder, "plain"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            unseal_into(source, descriptor, Keys(), name="it", expected=entry, workers=2)
            return Path(folder, "plain").read_bytes()
        finally:
            os.close(descriptor)


SMALL, SMALL_ENTRY = sealed_bytes(b"a short file")
LARGE_SIZE = 2 * SEGMENT_SIZE + 1000
LARGE, LARGE_ENTRY = sealed_bytes(patterned(LARGE_SIZE))


@settings(max_examples=25)
@given(size=sizes, seed=st.integers(0, 1000), workers=st.integers(1, 4))
def test_what_was_sealed_comes_back(size: int, seed: int, workers: int) -> None:
    content = patterned(size, seed)
    data, entry = sealed_bytes(content, workers)
    assert len(data) == HEADER_SIZE + Layout(size).body_size
    assert opened(data, entry) == content
    assert unsealed(data, entry) == content


@given(bit=st.integers(0, len(SMALL) * 8 - 1), indexed=st.booleans())
def test_any_flipped_bit_of_a_small_file_is_refused(bit: int, indexed: bool) -> None:
    damaged = bytearray(SMALL)
    damaged[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(SealingError):
        opened(bytes(damaged), SMALL_ENTRY if indexed else None)


@settings(max_examples=20)
@given(bit=st.integers(HEADER_SIZE * 8, len(LARGE) * 8 - 1), indexed=st.booleans())
def test_any_flipped_bit_of_a_large_file_is_refused(bit: int, indexed: bool) -> None:
    damaged = bytearray(LARGE)
    damaged[bit // 8] ^= 1 << (bit % 8)
    entry = LARGE_ENTRY if indexed else None
    with pytest.raises(SealingError):
        opened(bytes(damaged), entry)
    with pytest.raises(SealingError):
        unsealed(bytes(damaged), entry)


@given(length=st.integers(0, len(SMALL) - 1), indexed=st.booleans())
def test_any_prefix_of_a_small_file_is_refused(length: int, indexed: bool) -> None:
    with pytest.raises(SealingError):
        opened(SMALL[:length], SMALL_ENTRY if indexed else None)


cuts = st.one_of(
    st.integers(0, len(LARGE) - 1),
    st.integers(0, 2).flatmap(
        lambda n: st.integers(HEADER_SIZE + n * SEGMENT_SIZE - 20, HEADER_SIZE + n * SEGMENT_SIZE + 20)
    ),
)


@settings(max_examples=40)
@given(length=cuts, indexed=st.booleans())
def test_any_prefix_of_a_large_file_is_refused(length: int, indexed: bool) -> None:
    entry = LARGE_ENTRY if indexed else None
    with pytest.raises(SealingError):
        opened(LARGE[:length], entry)
    with pytest.raises(SealingError):
        unsealed(LARGE[:length], entry)


@settings(max_examples=40)
@given(more=st.binary(min_size=1, max_size=100), indexed=st.booleans())
def test_anything_appended_is_refused(more: bytes, indexed: bool) -> None:
    for data, entry in ((SMALL, SMALL_ENTRY), (LARGE, LARGE_ENTRY)):
        with pytest.raises(SealingError):
            opened(data + more, entry if indexed else None)


@settings(max_examples=20)
@given(order=st.permutations(range(3)), indexed=st.booleans())
def test_segments_in_another_order_are_refused(order: list[int], indexed: bool) -> None:
    data, entry = sealed_bytes(patterned(FIRST + 2 * OTHER))
    body = data[HEADER_SIZE:]
    blocks = [body[i * SEGMENT_SIZE : (i + 1) * SEGMENT_SIZE] for i in range(3)]
    # The preamble stays in front, only what was encrypted moves.
    texts = [blocks[0][PREAMBLE_SIZE:] + body[:PREAMBLE_SIZE], blocks[1], blocks[2]]
    moved = data[:HEADER_SIZE] + body[:PREAMBLE_SIZE] + b"".join(texts[i] for i in order)
    moved = moved[: len(data)]
    if list(order) == [0, 1, 2]:
        return
    with pytest.raises(SealingError):
        unsealed(moved, entry if indexed else None)


@given(offset=st.integers(0, LARGE_SIZE + 10), length=st.integers(0, 3 * SEGMENT_SIZE))
def test_any_range_reads_as_the_plaintext_has_it(offset: int, length: int) -> None:
    reader = SealedReader(io.BytesIO(LARGE), Keys(), name="it", expected=LARGE_ENTRY)
    assert reader.read(offset, length) == patterned(LARGE_SIZE)[offset : offset + length]


@given(size=st.integers(0, 1 << 39))
def test_sizes_and_body_lengths_belong_to_each_other(size: int) -> None:
    layout = Layout(size)
    assert layout_of_body(layout.body_size, name="x").size == size
    assert sum(layout.plain(i).length for i in {0, layout.segments - 1}) <= size


@given(length=st.integers(0, 1 << 24))
def test_a_body_length_is_a_layout_or_an_error_of_ours(length: int) -> None:
    try:
        layout = layout_of_body(length, name="x")
    except CloisterError:
        return
    assert layout.body_size == length


@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=5000).map(lambda tail: SMALL[:48] + tail)))
def test_a_header_parser_raises_only_its_own_errors(data: bytes) -> None:
    try:
        parse_header(data[:HEADER_SIZE], name="x")
    except SealingError:
        return


@given(data=st.binary(max_size=300), signature=st.binary(max_size=70))
def test_an_index_parser_raises_only_its_own_errors(data: bytes, signature: bytes) -> None:
    with pytest.raises((FormatError, IndexMismatch)):
        verify_index(data, signature, signers=[OWNER.public_key])


@given(text=st.text(max_size=80))
def test_uris_and_paths_are_accepted_as_they_are_or_refused(text: str) -> None:
    with contextlib.suppress(FormatError):
        assert str(parse_key_uri(text)) == text
    try:
        check_path(text)
    except FormatError:
        return
    assert not Path(text).is_absolute()
    assert ".." not in Path(text).parts
    assert Path(text).as_posix() == text
