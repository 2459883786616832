from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InferenceError
from cloister.inference.gguf_header import GgufHeader, read_gguf_header


def _model(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_token_list([b"a", b"b"])
    writer.add_token_scores([0.0, -1.0])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _model(tmp_path_factory.mktemp("gguf") / "small.gguf")


def read(data: bytes) -> GgufHeader:
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        return read_gguf_header(descriptor, what="the model")
    finally:
        os.close(descriptor)


def test_the_header_of_a_model_is_read(model: bytes) -> None:
    assert read(model) == GgufHeader(
        architecture="llama",
        name="small",
        trained_context=64,
        embedding_length=8,
        chat_template="{{ messages }}",
    )


def test_every_prefix_of_a_model_is_refused(model: bytes) -> None:
    end = len(model.rstrip(b"\0")) - 4
    for length in range(0, end, 7):
        with pytest.raises(InferenceError, match=r"truncated|not a GGUF"):
            read(model[:length])


def _forged() -> Iterator[object]:
    head = b"GGUF" + struct.pack("<I", 3)
    yield pytest.param(b"", "not a GGUF", id="empty")
    yield pytest.param(b"PK\x03\x04" + bytes(64), "not a GGUF", id="another format")
    yield pytest.param(b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99", id="version of the future")
    yield pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version", id="big endian")
    yield pytest.param(head + struct.pack("<QQ", 2**63, 0), "cannot be", id="endless tensors")
    yield pytest.param(head + struct.pack("<QQ", 0, 2**63), "cannot be", id="endless pairs")
    yield pytest.param(head + struct.pack("<QQQ", 0, 1, 2**62), "cannot be", id="endless key")
    yield pytest.param(head + struct.pack("<QQ", 0, 0) + bytes(8), "no model", id="nothing in it")
    pair = struct.pack("<Q", 1) + b"k"
    yield pytest.param(
        head + struct.pack("<QQ", 0, 1) + pair + struct.pack("<I", 77), "unknown type", id="type"
    )
    array = struct.pack("<IIQ", 9, 4, 2**40)
    yield pytest.param(head + struct.pack("<QQ", 0, 1) + pair + array, "cannot be", id="endless array")
    nested = struct.pack("<IIQ", 9, 9, 4)
    yield pytest.param(head + struct.pack("<QQ", 0, 1) + pair + nested, "unknown type", id="array of arrays")


@pytest.mark.parametrize(("data", "says"), tuple(_forged()))
def test_a_forged_header_is_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(InferenceError, match=says) as refused:
        read(data)
    assert "\n" not in str(refused.value)


@given(st.data())
def test_a_changed_header_raises_only_its_own_error(model: bytes, data: st.DataObject) -> None:
    changed = bytearray(model)
    place = data.draw(st.integers(0, len(model) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InferenceError):
        read(bytes(changed))
