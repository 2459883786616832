"""The body of a sealed file is Tink's own: what `tink` seals we open, and what we seal `tink` opens."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tink
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from cloister.sealing.envelope import HEADER_SIZE, encode_header, new_header, unwrap
from cloister.sealing.files import read_header, seal_file
from cloister.sealing.reader import SealedReader
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE, TAG_SIZE
from sealing_samples import KEK, URI, Keys, patterned

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
OTHER = SEGMENT_SIZE - TAG_SIZE
SIZES = [
    0,
    1,
    FIRST - 1,
    FIRST,
    FIRST + 1,
    FIRST + OTHER - 1,
    FIRST + OTHER,
    FIRST + OTHER + 1,
    SEGMENT_SIZE - 1,
    SEGMENT_SIZE,
    SEGMENT_SIZE + 1,
    3 * SEGMENT_SIZE,
]

streaming_aead.register()


def primitive(data_key: bytes) -> streaming_aead.StreamingAead:
    """Tink's AES256_GCM_HKDF_1MB over a raw key."""
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, key_value=data_key)
    key.params.ciphertext_segment_size = 1 << 20
    key.params.derived_key_size = 32
    key.params.hkdf_hash_type = common_pb2.SHA256
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """Tink closes what it wrote to; we still want to read it."""

    content = b""

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
        super().close()


def tink_seals(data_key: bytes, associated_data: bytes, plain: bytes) -> bytes:
    out = Kept()
    with primitive(data_key).new_encrypting_stream(out, associated_data) as stream:
        stream.write(plain)
    return out.content


def tink_opens(data_key: bytes, associated_data: bytes, body: bytes) -> bytes:
    with primitive(data_key).new_decrypting_stream(io.BytesIO(body), associated_data) as stream:
        return stream.read()


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_the_body_that_we_seal(tmp_path: Path, size: int) -> None:
    content = patterned(size)
    (tmp_path / "plain").write_bytes(content)
    seal_file(tmp_path / "plain", tmp_path / "sealed", key_uri=URI, kek=KEK, workers=2)
    header = read_header(tmp_path / "sealed")
    data_key = bytes(unwrap(header, KEK, name="it"))
    body = (tmp_path / "sealed").read_bytes()[HEADER_SIZE:]
    assert tink_opens(data_key, header.associated_data, body) == content


@pytest.mark.parametrize("size", SIZES)
def test_we_open_the_body_that_tink_seals(size: int) -> None:
    content, data_key = patterned(size), b"d" * 32
    header = new_header(key_uri=URI, kek=KEK, data_key=data_key, file_id=b"f" * 32, salt=b"s" * 32)
    body = tink_seals(data_key, header.associated_data, content)
    sealed = io.BytesIO(encode_header(header) + body)
    reader = SealedReader(sealed, Keys(), name="it")
    assert reader.size == size
    assert reader.read(0, size) == content


def test_tink_refuses_our_body_under_another_file_id(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"content")
    seal_file(tmp_path / "plain", tmp_path / "sealed", key_uri=URI, kek=KEK)
    header = read_header(tmp_path / "sealed")
    data_key = bytes(unwrap(header, KEK, name="it"))
    body = (tmp_path / "sealed").read_bytes()[HEADER_SIZE:]
    with pytest.raises((tink.TinkError, OSError)):
        tink_opens(data_key, header.associated_data[:-1] + b"\2", body)
