"""The published vector of docs/spec/sealed-file.md: these inputs give these bytes, these alterations these errors."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister import errors
from cloister.sealing.files import seal_file
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedReader
from sealing_samples import Keys

VECTOR = json.loads((Path(__file__).parent.parent / "vectors" / "sealed-file-1.json").read_text())
SEALED = base64.b64decode(VECTOR["sealed"])
KEYS = {VECTOR["key_uri"]: bytes.fromhex(VECTOR["kek"])}


def drawn() -> Callable[[int], bytes]:
    names = iter(["file_id", "data_key", "wrap_salt", "body_salt", "nonce_prefix"])
    return lambda length: bytes.fromhex(VECTOR[next(names)])


def sealed(folder: Path, content: bytes) -> tuple[bytes, IndexEntry]:
    (folder / "plain").write_bytes(content)
    (uri, kek), target = next(iter(KEYS.items())), folder / "sealed"
    entry = seal_file(folder / "plain", target, key_uri=uri, kek=kek, entropy=drawn(), workers=2)
    return target.read_bytes(), entry


def test_the_inputs_of_the_vector_give_its_file(tmp_path: Path) -> None:
    data, entry = sealed(tmp_path, bytes.fromhex(VECTOR["plaintext"]))
    assert data == SEALED
    assert entry.digest.hex() == VECTOR["digest"]


def test_the_inputs_of_the_larger_vector_give_its_digest(tmp_path: Path) -> None:
    larger = VECTOR["patterned"]
    data, entry = sealed(tmp_path, bytes(number % 251 for number in range(larger["size"])))
    assert hashlib.sha256(data).hexdigest() == larger["sealed_sha256"]
    assert entry.digest.hex() == larger["digest"]


def test_the_file_of_the_vector_opens() -> None:
    reader = SealedReader(io.BytesIO(SEALED), Keys(KEYS), name="vector")
    assert reader.read(0, reader.size).hex() == VECTOR["plaintext"]


@pytest.mark.parametrize("case", VECTOR["refused"], ids=[case["name"] for case in VECTOR["refused"]])
def test_an_altered_vector_is_refused_with_the_stated_error(case: dict[str, object]) -> None:
    data = bytearray(SEALED)
    if "length" in case:
        del data[case["length"] :]  # type: ignore[misc]
    else:
        data[case["offset"]] ^= case["xor"]  # type: ignore[index,operator]
    with pytest.raises(getattr(errors, str(case["error"]))):
        SealedReader(io.BytesIO(bytes(data)), Keys(KEYS), name="vector")
