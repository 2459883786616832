"""Our X-Wing agrees with the vectors of draft-connolly-cfrg-xwing-kem."""

from __future__ import annotations

import json

from cloister.channel.hpke import Kem, KeyPair
from shared_data import vectors


def test_the_seed_gives_the_public_key_and_the_ciphertext_gives_the_secret() -> None:
    cases = json.loads(vectors("x-wing/test-vectors.json").read_text())
    assert len(cases) == 3
    for case in cases:
        pair = KeyPair.from_private_bytes(Kem.X_WING, bytes.fromhex(case["sk"]))
        assert pair.public_key.hex() == case["pk"]
        assert pair.decapsulate(bytes.fromhex(case["ct"])).hex() == case["ss"]
