"""Sealing a stream: what it writes is a sealed file like any other, and half of it is a truncated one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cloister.errors import TruncatedFile, UsageError
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.files import seal_file
from cloister.sealing.reader import SealedReader
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE, TAG_SIZE
from cloister.sealing.writer import SealedWriter
from sealing_samples import KEK, URI, Keys, counted_entropy, patterned

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
OTHER = SEGMENT_SIZE - TAG_SIZE
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + OTHER, FIRST + OTHER + 1, 2_500_000]


def read_back(sealed: bytes) -> bytes:
    reader = SealedReader(io.BytesIO(sealed), Keys(), name="it")
    return reader.read(0, reader.size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [65_537, 3_000_000], ids=["in pieces", "at once"])
def test_a_stream_is_sealed_into_the_very_bytes_that_its_file_would_be(tmp_path: Path, size: int, piece: int):
    content, out = patterned(size), io.BytesIO()
    with SealedWriter(out, key_uri=URI, kek=KEK, entropy=counted_entropy()) as writer:
        for start in range(0, size, piece):
            assert writer.write(content[start : start + piece]) == len(content[start : start + piece])
        assert writer.tell() == size
    (tmp_path / "it").write_bytes(content)
    entry = seal_file(tmp_path / "it", tmp_path / "s", key_uri=URI, kek=KEK, entropy=counted_entropy())
    assert out.getvalue() == (tmp_path / "s").read_bytes()
    assert writer.entry == entry
    assert writer.file_name == entry.file_name


def test_an_aborted_stream_is_a_truncated_file() -> None:
    out = io.BytesIO()
    writer = SealedWriter(out, key_uri=URI, kek=KEK)
    with pytest.raises(TypeError), writer:
        writer.write(patterned(2_500_000) + "x")  # type: ignore[operator]
    with pytest.raises(UsageError, match="has ended"):
        writer.write(b"x")
    assert len(out.getvalue()) == HEADER_SIZE
    out = io.BytesIO()
    writer = SealedWriter(out, key_uri=URI, kek=KEK)
    writer.write(patterned(2_500_000))
    writer.abort()
    assert writer.closed
    assert len(out.getvalue()) == HEADER_SIZE + 2 * SEGMENT_SIZE
    with pytest.raises(TruncatedFile):
        read_back(out.getvalue())
    with pytest.raises(UsageError, match="not at its end"):
        _ = writer.entry
    writer.close()
    assert len(out.getvalue()) == HEADER_SIZE + 2 * SEGMENT_SIZE


def test_a_stream_that_was_forgotten_is_a_truncated_file() -> None:
    out = io.BytesIO()
    writer = SealedWriter(out, key_uri=URI, kek=KEK)
    writer.write(b"x")
    del writer
    with pytest.raises(TruncatedFile):
        read_back(out.getvalue())


class _Full(io.BytesIO):
    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        if self.tell() > SEGMENT_SIZE:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_writer_whose_place_is_full_ends_there_and_takes_no_more() -> None:
    out = _Full()
    writer = SealedWriter(out, key_uri=URI, kek=KEK)
    with pytest.raises(OSError, match="No space"):
        writer.write(patterned(4_000_000))
    with pytest.raises(UsageError, match="has ended"):
        writer.write(b"more")
    size = len(out.getvalue())
    writer.close()
    assert len(out.getvalue()) == size


class _Short(io.BytesIO):
    """A raw file that takes a part of what it is given."""

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        return super().write(data[:70_001])


def test_a_place_that_takes_a_part_at_a_time_gets_all_of_it() -> None:
    content, out = patterned(1_500_000), _Short()
    with SealedWriter(out, key_uri=URI, kek=KEK) as writer:
        writer.write(content)
    assert read_back(out.getvalue()) == content


class _Unwilling(io.RawIOBase):
    def write(self, data: memoryview, /) -> None:  # type: ignore[override]
        return None


def test_a_place_that_takes_nothing_is_an_error_and_no_silent_loss() -> None:
    with pytest.raises(OSError, match="took no bytes"):
        SealedWriter(_Unwilling(), key_uri=URI, kek=KEK)


def test_a_writer_is_no_reader_and_ends_once() -> None:
    writer = SealedWriter(io.BytesIO(), key_uri=URI, kek=KEK)
    assert (writer.writable(), writer.readable(), writer.seekable()) == (True, False, False)
    writer.close()
    writer.close()
    writer.abort()
    assert writer.entry.size == 0
    with pytest.raises(UsageError, match="has ended"), writer:
        pass
    with pytest.raises(UsageError, match="is not a key URI"):
        SealedWriter(io.BytesIO(), key_uri="kbs://x/y", kek=KEK)
