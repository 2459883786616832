"""A run after a round, sealed: what goes in comes out, and a file that is anything else is not gone on from."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cloister.encoding import encode_json
from cloister.errors import (
    CloisterError,
    FederationError,
    FormatError,
    SealingError,
    TruncatedFile,
    UsageError,
    WrongKey,
)
from cloister.federated.checkpoint import (
    NAME,
    Checkpoint,
    key_uri,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from cloister.federated.progress import Ended, PartyState
from cloister.federated.rounds import Kept
from cloister.federated.updates import encode_arrays
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.writer import SealedWriter
from federation_parts import MODEL

FEDERATION, OTHER = "ab" * 32, "cd" * 32
KEY, STRANGER = bytes(range(32)), bytes(32)
FACTS = (
    PartyState(
        at=1, party="north", state="ready", reason="", agent="", workload="", measurements="", tee="tdx", until=9
    ),
    Ended(at=2, finished=True, reason="", rounds=3, model="ee" * 32),
)  # fmt: skip


def checkpoint(number: int = 3, **changes: Any) -> Checkpoint:
    state = {name: np.stack([one, one]).astype(np.float32) for name, one in MODEL.items()}
    plain: dict[str, Any] = {
        "run": "5e" * 16,
        "over": False,
        "kept": Kept(number, MODEL, state),
        "facts": FACTS,
    }
    return Checkpoint(**(plain | changes))


def write(
    folder: Path, found: Checkpoint | None = None, *, federation: str = FEDERATION, key: bytes = KEY
) -> bytes:
    write_checkpoint(folder, found or checkpoint(), federation=federation, key=key)
    return (folder / NAME).read_bytes()


def read(folder: Path, *, federation: str = FEDERATION, key: bytes = KEY) -> Checkpoint | None:
    return read_checkpoint(folder, federation=federation, key=key)


def bits(found: Checkpoint | None) -> Any:
    assert found is not None
    parts = [
        {name: (one.dtype, one.shape, one.tobytes()) for name, one in arrays.items()}
        for arrays in (found.kept.model, found.kept.state)
    ]
    return found.run, found.over, found.kept.number, parts, found.facts


TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8),
    arrays(st.sampled_from((np.float32, np.float16)), array_shapes(min_dims=0, max_dims=2, max_side=3)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25)
@given(
    model=TENSORS, state=st.one_of(st.just({}), TENSORS), number=st.integers(0, 10_000), over=st.booleans(),
    run=st.text("0123456789abcdef", max_size=32),
)  # fmt: skip
def test_a_run_comes_out_as_it_went_in(model: Any, state: Any, number: int, over: bool, run: str) -> None:
    found = checkpoint(run=run, over=over, kept=Kept(number, model, state, bytes(32)))
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), found)
        assert bits(read(Path(name))) == bits(found)


def test_where_there_is_none_a_run_begins(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert newest_checkpoint(tmp_path, federation=FEDERATION, keys=[KEY], seen=0) is None


def test_nothing_of_it_is_in_the_clear_and_no_two_are_the_same(tmp_path: Path) -> None:
    one, two = write(tmp_path), write(tmp_path)
    assert one != two
    for word in (
        b"linear.weight",
        b"finished",
        b"5e5e5e",
        MODEL["linear.weight"].tobytes(),
        FEDERATION.encode(),
    ):
        assert word not in one
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]  # written whole or not at all


@functools.cache
def sealed() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return write(Path(name))


def reads(data: bytes) -> Checkpoint | None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / NAME).write_bytes(data)
        return read(Path(name))


@given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_no_flipped_bit_is_gone_on_from(place: int, bit: int) -> None:
    data = bytearray(sealed())
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(CloisterError):
        reads(bytes(data))


@given(length=st.integers(0, 1 << 20))
def test_no_part_of_one_is_gone_on_from(length: int) -> None:
    with pytest.raises(CloisterError):
        reads(sealed()[: length % len(sealed())])


def test_it_is_not_gone_on_from_with_more_behind_it() -> None:
    with pytest.raises(CloisterError):
        reads(sealed() + b"\0")


def test_one_that_ends_between_two_segments_is_none(tmp_path: Path) -> None:
    """Each segment that is left is genuine, and it is still not a run."""
    large = {"weight": np.zeros(600_000, dtype=np.float32)}
    data = write(tmp_path, checkpoint(kept=Kept(3, large, {})))
    body = len(data) - HEADER_SIZE
    assert body > 2 * SEGMENT_SIZE
    assert reads(data) is not None
    for segments in (0, 1, 2):
        with pytest.raises(SealingError):
            reads(data[: HEADER_SIZE + segments * SEGMENT_SIZE])


def test_one_that_ends_inside_its_header_says_so() -> None:
    with pytest.raises(TruncatedFile):
        reads(sealed()[: HEADER_SIZE - 1])


def test_one_of_another_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(WrongKey):
        read(tmp_path, key=STRANGER)


def test_one_of_another_federation_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CloisterError, match="kbs:///federation/checkpoint"):
        read(tmp_path, federation=OTHER)


def seal(folder: Path, content: bytes) -> None:
    """Whatever it is, under the right key: what only who has the key could do."""
    out = io.BytesIO()
    with SealedWriter(out, key_uri=key_uri(FEDERATION), kek=KEY, name=NAME) as writer:
        writer.write(content)
    (folder / NAME).write_bytes(out.getvalue())


def content(parts: tuple[bytes, ...] = (), **changes: Any) -> bytes:
    model, state, facts = parts or (encode_arrays(MODEL), b"", b"")
    plain: dict[str, Any] = {
        "format": "cloister/federation-checkpoint/v1",
        "federation": FEDERATION,
        "run": "5e" * 16,
        "round": 3,
        "over": False,
        "noise": "0a" * 32,
        "model": len(model),
        "state": len(state),
        "facts": len(facts),
    }
    head = encode_json(plain | changes)
    return len(head).to_bytes(8, "big") + head + model + state + facts


LONG = len(encode_arrays(MODEL))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        pytest.param(lambda: content(federation=OTHER), FederationError, "another federation", id="another federation's"),
        pytest.param(
            lambda: content(federation=FEDERATION[:32] + "00" * 16), FederationError, "another version",
            id="of a federation whose digest begins alike",
        ),
        pytest.param(lambda: content(model=LONG - 1), FormatError, "the parts that", id="a part that is shorter"),
        pytest.param(lambda: content(model=LONG + 1), FormatError, "the parts that", id="a part that is longer"),
        pytest.param(
            lambda: content(model=LONG + 9, state=-9), FormatError, "the parts that", id="a part of less than nothing"
        ),
        pytest.param(lambda: content((b"model", b"", b"")), FormatError, "the checkpoint's model", id="no model"),
        pytest.param(
            lambda: content((encode_arrays(MODEL), b"state", b"")), FormatError, "the checkpoint's state", id="no state"
        ),
        pytest.param(
            lambda: content((encode_arrays(MODEL), b"", b"{}\n")), FormatError, "the checkpoint's facts", id="no facts"
        ),
        pytest.param(lambda: content(more=1), FormatError, "unknown field", id="a field more"),
        pytest.param(lambda: content(over=1), FormatError, "bool", id="a field of another kind"),
        pytest.param(lambda: content(noise="0A" * 32), FormatError, "secret of its noise", id="no secret"),
        pytest.param(lambda: b"", FormatError, "is not JSON", id="empty"),
        pytest.param(lambda: b"\xff" * 64, FormatError, "no head", id="a head without end"),
        pytest.param(lambda: (70_000).to_bytes(8, "big") + bytes(70_000), FormatError, "no head", id="a giant head"),
    ],
)  # fmt: skip
def test_one_that_was_made_up_by_who_has_the_key_is_refused(
    tmp_path: Path, make: Callable[[], bytes], error: type[CloisterError], words: str
) -> None:
    seal(tmp_path, content())
    assert read(tmp_path) is not None  # what is refused below is not the way it is made
    seal(tmp_path, make())
    with pytest.raises(error, match=words):
        read(tmp_path)


def test_one_that_cannot_be_read_is_an_error_and_not_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)


def test_a_run_goes_on_with_whichever_key_opens_it(tmp_path: Path) -> None:
    write(tmp_path)
    found = newest_checkpoint(tmp_path, federation=FEDERATION, keys=[STRANGER, KEY, b"k" * 32], seen=3)
    assert found is not None
    key, one = found
    assert (key, bits(one)) == (KEY, bits(checkpoint()))


@pytest.mark.parametrize(
    ("number", "keys", "seen", "words"),
    [
        pytest.param(2, [KEY], 3, "is of round 2, and parties have seen round 3", id="an older one"),
        pytest.param(3, [STRANGER], 0, "cannot be used", id="whose key nobody brought"),
        pytest.param(3, [], 0, "nobody has a key", id="and no key at all"),
        pytest.param(None, [KEY], 1, "and there is no checkpoint", id="none, though parties saw a round"),
    ],
)
def test_a_run_does_not_go_on_from(
    tmp_path: Path, number: int | None, keys: list[bytes], seen: int, words: str
) -> None:
    if number is not None:
        write(tmp_path, checkpoint(number))
    with pytest.raises(FederationError, match=words) as refusal:
        newest_checkpoint(tmp_path, federation=FEDERATION, keys=keys, seen=seen)
    assert refusal.value.todo


def test_an_old_one_in_the_place_of_the_newest_opens_and_is_told_by_what_parties_saw(tmp_path: Path) -> None:
    """It is genuine: nothing but the parties' memory tells it."""
    old = write(tmp_path, checkpoint(2))
    write(tmp_path, checkpoint(3))
    assert newest_checkpoint(tmp_path, federation=FEDERATION, keys=[KEY], seen=3) is not None
    (tmp_path / NAME).write_bytes(old)
    assert read(tmp_path) is not None
    with pytest.raises(FederationError, match="somebody restored an older one"):
        newest_checkpoint(tmp_path, federation=FEDERATION, keys=[KEY], seen=3)
