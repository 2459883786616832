"""HPKE: both KEMs, agreement with `cryptography`'s one-shot HPKE, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import hpke as theirs
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.channel import hpke
from cloister.channel.hpke import Aead, Kdf, Kem, KeyPair, Suite
from cloister.errors import (
    ChannelError,
    ChunkRefused,
    CloisterError,
    DecapsulationFailed,
    UnknownKey,
    UsageError,
)

THEIR_KDF = {
    Kdf.HKDF_SHA256: theirs.KDF.HKDF_SHA256,
    Kdf.HKDF_SHA384: theirs.KDF.HKDF_SHA384,
    Kdf.HKDF_SHA512: theirs.KDF.HKDF_SHA512,
}
THEIR_AEAD = {
    Aead.AES_128_GCM: theirs.AEAD.AES_128_GCM,
    Aead.AES_256_GCM: theirs.AEAD.AES_256_GCM,
    Aead.CHACHA20_POLY1305: theirs.AEAD.CHACHA20_POLY1305,
}
EVERY_SUITE = [
    pytest.param(Suite(kem, kdf, aead), id=f"{kem.name}-{kdf.name}-{aead.name}")
    for kem in Kem
    for kdf in Kdf
    for aead in Aead
]
LOW_ORDER = {
    "zero": bytes(32),
    "one": b"\x01" + bytes(31),
    "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "minus one": bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    "the prime": bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
}


def other_library(suite: Suite) -> tuple[theirs.Suite, KeyPair, object]:
    """The same key for us and for `cryptography`."""
    x25519 = X25519PrivateKey.generate()
    if suite.kem is Kem.X25519:
        kem, pair, private = theirs.KEM.X25519, KeyPair(suite.kem, x25519, None), x25519
    else:
        mlkem = MLKEM768PrivateKey.generate()
        kem, pair = theirs.KEM.MLKEM768_X25519, KeyPair(suite.kem, x25519, mlkem)
        private = theirs.MLKEM768X25519PrivateKey(mlkem, x25519)
    return theirs.Suite(kem, THEIR_KDF[suite.kdf], THEIR_AEAD[suite.aead]), pair, private


def exchange(suite: Suite, info: bytes = b"info") -> tuple[hpke.Sender, hpke.Recipient]:
    pair = KeyPair.generate(suite.kem)
    enc, sender = hpke.setup_sender(suite, pair.public_key, info)
    return sender, hpke.setup_recipient(suite, pair, enc, info)


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_what_we_seal_the_one_shot_hpke_of_cryptography_opens(suite: Suite) -> None:
    them, pair, private = other_library(suite)
    enc, sender = hpke.setup_sender(suite, pair.public_key, b"about")
    assert them.decrypt(enc + sender.seal(b"", b"hello"), private, b"about") == b"hello"


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_what_the_one_shot_hpke_of_cryptography_seals_we_open(suite: Suite) -> None:
    them, pair, private = other_library(suite)
    sealed = them.encrypt(b"hello", private.public_key(), b"about")
    length = suite.kem.enc_length
    recipient = hpke.setup_recipient(suite, pair, sealed[:length], b"about")
    assert recipient.open(b"", sealed[length:]) == b"hello"


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_both_sides_go_through_a_sequence_and_export_the_same(suite: Suite) -> None:
    sender, recipient = exchange(suite)
    for number in range(5):
        text = b"message %d" % number
        assert recipient.open(b"aad", sender.seal(b"aad", text)) == text
    assert recipient.sequence == 5
    assert sender.export(b"purpose", 48) == recipient.export(b"purpose", 48)
    assert sender.export(b"purpose", 48) != sender.export(b"another", 48)


def test_a_message_out_of_its_place_is_refused_and_the_place_stays() -> None:
    sender, recipient = exchange(Suite(Kem.X_WING))
    first, second = sender.seal(b"", b"first"), sender.seal(b"", b"second")
    with pytest.raises(ChunkRefused):
        recipient.open(b"", second)
    assert recipient.open(b"", first) == b"first"
    with pytest.raises(ChunkRefused):
        recipient.open(b"", first)
    assert recipient.open(b"", second) == b"second"


def test_another_info_another_aad_and_another_key_do_not_open() -> None:
    suite = Suite(Kem.X_WING)
    pair = KeyPair.generate()
    enc, sender = hpke.setup_sender(suite, pair.public_key, b"info")
    sealed = sender.seal(b"aad", b"text")
    attempts = [
        (pair, b"other", b"aad"),
        (pair, b"info", b"other"),
        (KeyPair.generate(), b"info", b"aad"),
    ]
    for key, info, aad in attempts:
        with pytest.raises(ChunkRefused):
            hpke.setup_recipient(suite, key, enc, info).open(aad, sealed)


@pytest.mark.parametrize("kem", Kem)
@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER)
def test_an_encapsulated_point_of_low_order_is_refused(kem: Kem, point: bytes) -> None:
    pair = KeyPair.generate(kem)
    with pytest.raises(DecapsulationFailed):
        pair.decapsulate(bytes(kem.enc_length - 32) + point)


@pytest.mark.parametrize("kem", Kem)
@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER)
def test_a_public_key_of_low_order_is_refused(kem: Kem, point: bytes) -> None:
    public = KeyPair.generate(kem).public_key[:-32] + point
    with pytest.raises(ChannelError):
        hpke.encapsulate(kem, public)


def test_an_mlkem_key_with_a_coefficient_out_of_range_is_refused() -> None:
    public = b"\xff\xff\xff" + KeyPair.generate().public_key[3:]
    with pytest.raises(ChannelError):
        hpke.encapsulate(Kem.X_WING, public)


X25519_PAIR = KeyPair.generate(Kem.X25519)
REFUSED: dict[str, tuple[type[CloisterError], Callable[[], object]]] = {
    "a public key too short": (ChannelError, lambda: hpke.encapsulate(Kem.X25519, bytes(31))),
    "a public key too long": (
        ChannelError,
        lambda: hpke.encapsulate(Kem.X25519, b"\x00" + X25519_PAIR.public_key),
    ),
    "an X25519 key for X-Wing": (ChannelError, lambda: hpke.encapsulate(Kem.X_WING, bytes(32))),
    "an enc too short": (DecapsulationFailed, lambda: KeyPair.generate().decapsulate(bytes(1119))),
    "an enc too long": (
        DecapsulationFailed,
        lambda: X25519_PAIR.decapsulate(b"\x00" + X25519_PAIR.public_key),
    ),
    "a private key too short": (UsageError, lambda: KeyPair.from_private_bytes(Kem.X_WING, bytes(31))),
    "half a hybrid": (UsageError, lambda: KeyPair(Kem.X_WING, X25519PrivateKey.generate(), None)),
    "an unknown KEM": (UsageError, lambda: Suite.of(0x10, 1, 1)),
    "an unknown KDF": (UsageError, lambda: Suite.of(Kem.X25519, 9, 1)),
    "export only": (UsageError, lambda: Suite.of(Kem.X25519, 1, 0xFFFF)),
    "a pair of another KEM": (
        UsageError,
        lambda: hpke.setup_recipient(Suite(Kem.X_WING), KeyPair.generate(Kem.X25519), bytes(32), b""),
    ),
    "an export of nothing": (UsageError, lambda: exchange(Suite(Kem.X25519))[0].export(b"", 0)),
    "an export too long": (UsageError, lambda: exchange(Suite(Kem.X25519))[0].export(b"", 255 * 32 + 1)),
    "the message after the last": (ChannelError, lambda: hpke.nonce_at(0, hpke.MAX_SEALS)),
}


@pytest.mark.parametrize(("error", "attempt"), REFUSED.values(), ids=REFUSED)
def test_it_refuses(error: type[CloisterError], attempt: Callable[[], object]) -> None:
    with pytest.raises(error):
        attempt()


def test_the_sequence_ends_before_a_nonce_could_repeat() -> None:
    nonces = hpke.Nonces(2**96 - 1, start=hpke.MAX_SEALS - 1)
    assert int.from_bytes(nonces.take(), "big") == 2**96 - hpke.MAX_SEALS
    with pytest.raises(ChannelError):
        nonces.take()


def test_several_threads_never_get_one_nonce_twice() -> None:
    nonces = hpke.Nonces(0x0102030405060708090A0B0C)
    with ThreadPoolExecutor(8) as pool:
        taken = [
            nonce
            for some in pool.map(lambda _: [nonces.take() for _ in range(500)], range(8))
            for nonce in some
        ]
    assert len(set(taken)) == len(taken) == 4000


@pytest.mark.parametrize("kem", Kem)
def test_an_erased_key_opens_nothing_more_and_may_be_erased_twice(kem: Kem) -> None:
    pair = KeyPair.generate(kem)
    _, enc = hpke.encapsulate(kem, pair.public_key)
    pair.decapsulate(enc)
    pair.erase()
    pair.erase()
    with pytest.raises(UnknownKey):
        pair.decapsulate(enc)
    assert pair._mlkem is None
    assert len(pair.public_key) == kem.public_length


def test_an_ephemeral_key_serves_once() -> None:
    public = KeyPair.generate(Kem.X25519).public_key
    ephemeral = KeyPair.generate(Kem.X25519)
    hpke.encapsulate(Kem.X25519, public, ephemeral=ephemeral)
    with pytest.raises(UsageError):
        hpke.encapsulate(Kem.X25519, public, ephemeral=ephemeral)


@pytest.mark.parametrize("kem", Kem)
def test_a_private_key_shows_nothing_and_does_not_travel(kem: Kem) -> None:
    seed = bytes(range(32))
    pair = KeyPair.from_private_bytes(kem, seed)
    for text in (repr(pair), str(pair)):
        assert seed.hex() not in text
        assert repr(seed) not in text
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            way(pair)
