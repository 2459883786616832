"""However a stream is cut into writes, the sealed file is the same; and no part of it is taken for the whole."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import SealingError
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.reader import SealedReader
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.writer import SealedWriter
from sealing_samples import KEK, URI, Keys, counted_entropy, patterned

CONTENT = patterned(2_200_000)


def sealed_in(pieces: list[bytes]) -> bytes:
    out = io.BytesIO()
    with SealedWriter(out, key_uri=URI, kek=KEK, entropy=counted_entropy()) as writer:
        for piece in pieces:
            writer.write(piece)
    return out.getvalue()


WHOLE = sealed_in([CONTENT])


@given(st.lists(st.integers(0, len(CONTENT)), max_size=12))
def test_any_cutting_into_writes_gives_the_same_sealed_file(places: list[int]) -> None:
    ends = sorted({*places, len(CONTENT)})
    starts = [0, *ends[:-1]]
    assert sealed_in([CONTENT[start:end] for start, end in zip(starts, ends, strict=True)]) == WHOLE


@given(
    st.one_of(
        st.integers(0, len(WHOLE) - 1),
        st.integers(0, 2).map(lambda segments: HEADER_SIZE + segments * SEGMENT_SIZE),
    )
)
def test_no_part_of_a_stream_from_its_start_is_taken_for_the_whole(length: int) -> None:
    with pytest.raises(SealingError):
        SealedReader(io.BytesIO(WHOLE[:length]), Keys(), name="it")
