"""Tinfoil's Encrypted HTTP Body Protocol derives response keys as OHTTP does: its vectors check ours once more."""

from __future__ import annotations

import json

from cloister.channel.hpke import Aead, Kdf, cipher, expand, extract, nonce_at
from shared_data import vectors


def derived(case: dict[str, str]) -> tuple[bytes, bytes]:
    salt = bytes.fromhex(case["requestEnc"] + case["responseNonce"])
    prk = extract(Kdf.HKDF_SHA256, salt, bytes.fromhex(case["exportedSecret"]))
    return expand(Kdf.HKDF_SHA256, prk, b"key", 32), expand(Kdf.HKDF_SHA256, prk, b"nonce", 12)


def test_the_response_key_and_nonce_are_those_of_the_vector() -> None:
    case = json.loads(vectors("tinfoil-ehbp/derive.json").read_text())
    key, nonce = derived(case)
    assert (key.hex(), nonce.hex()) == (case["derivedKey"], case["derivedNonceBase"])


def test_the_first_response_chunk_opens_under_them() -> None:
    case = json.loads(vectors("tinfoil-ehbp/response-decryption.json").read_text())
    key, nonce = derived(case)
    framed = bytes.fromhex(case["encryptedResponse"])
    assert int.from_bytes(framed[:4], "big") == len(framed) - 4
    opener = cipher(Aead.AES_256_GCM, key)
    opened = opener.decrypt(nonce_at(int.from_bytes(nonce, "big"), 0), framed[4:], b"")
    assert opened.hex() == case["plaintext"]
