"""Our HPKE reproduces RFC 9180's vectors and the post-quantum ones, as PyPI's cryptography-vectors carries them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest

from cloister.channel.hpke import Aead, Kdf, Kem, KeyPair, Suite, setup_recipient, setup_sender

FOLDER = Path(cryptography_vectors.__file__).parent / "HPKE"


@cache
def every_vector() -> list[dict[str, Any]]:
    return [
        vector
        for name in ("test-vectors.json", "hpke-pq-test-vectors.json")
        for vector in json.loads((FOLDER / name).read_text())
    ]


def ours() -> list[Any]:
    return [
        pytest.param(vector, id=f"{Kem(vector['kem_id']).name}-kdf{vector['kdf_id']}-aead{vector['aead_id']}")
        for vector in every_vector()
        if vector["mode"] == 0
        and vector["kem_id"] in set(Kem)
        and vector["kdf_id"] in set(Kdf)
        and vector["aead_id"] in set(Aead)
    ]


def recipient_of(vector: dict[str, Any]) -> tuple[Suite, KeyPair]:
    suite = Suite(vector["kem_id"], vector["kdf_id"], vector["aead_id"])
    return suite, KeyPair.from_private_bytes(suite.kem, bytes.fromhex(vector["skRm"]))


def test_the_vectors_cover_both_kems_and_every_aead() -> None:
    seen = {(p.values[0]["kem_id"], p.values[0]["aead_id"]) for p in ours()}
    assert seen == {(Kem.X25519, 1), (Kem.X25519, 2), (Kem.X25519, 3), (Kem.X_WING, 3)}


@pytest.mark.parametrize("vector", ours())
def test_a_recipient_opens_and_exports_what_the_vector_says(vector: dict[str, Any]) -> None:
    suite, pair = recipient_of(vector)
    assert pair.public_key.hex() == vector["pkRm"]
    assert pair.decapsulate(bytes.fromhex(vector["enc"])).hex() == vector["shared_secret"]

    recipient = setup_recipient(suite, pair, bytes.fromhex(vector["enc"]), bytes.fromhex(vector["info"]))
    for message in vector["encryptions"]:
        opened = recipient.open(bytes.fromhex(message["aad"]), bytes.fromhex(message["ct"]))
        assert opened.hex() == message["pt"]
    for export in vector["exports"]:
        exported = recipient.export(bytes.fromhex(export["exporter_context"]), export["L"])
        assert exported.hex() == export["exported_value"]


@pytest.mark.parametrize("vector", [p for p in ours() if p.values[0]["kem_id"] == Kem.X25519])
def test_a_sender_seals_and_exports_what_the_vector_says(vector: dict[str, Any]) -> None:
    suite, pair = recipient_of(vector)
    ephemeral = KeyPair.from_private_bytes(Kem.X25519, bytes.fromhex(vector["skEm"]))
    enc, sender = setup_sender(suite, pair.public_key, bytes.fromhex(vector["info"]), ephemeral=ephemeral)
    assert enc.hex() == vector["enc"]
    for message in vector["encryptions"]:
        sealed = sender.seal(bytes.fromhex(message["aad"]), bytes.fromhex(message["pt"]))
        assert sealed.hex() == message["ct"]
    for export in vector["exports"]:
        exported = sender.export(bytes.fromhex(export["exporter_context"]), export["L"])
        assert exported.hex() == export["exported_value"]


def test_every_post_quantum_hybrid_vector_decapsulates_whatever_its_kdf() -> None:
    vectors = [vector for vector in every_vector() if vector["kem_id"] == Kem.X_WING]
    assert len(vectors) == 2
    for vector in vectors:
        pair = KeyPair.from_private_bytes(Kem.X_WING, bytes.fromhex(vector["skRm"]))
        assert pair.public_key.hex() == vector["pkRm"]
        assert pair.decapsulate(bytes.fromhex(vector["enc"])).hex() == vector["shared_secret"]
