"""XAES-256-GCM against C2SP's vectors (https://c2sp.org/XAES-256-GCM), the single ones and the accumulated ones."""

from __future__ import annotations

import hashlib
import threading

import pytest
from cryptography.exceptions import InvalidTag

from cloister.errors import FormatError
from cloister.sealing.xaes import Xaes

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
PLAIN = b"XAES-256-GCM"


def sealed(key: bytes, nonce: bytes, plain: bytes, associated_data: bytes) -> bytes:
    out = bytearray(len(plain) + 16)
    Xaes(key).seal_into(nonce, plain, associated_data, out)
    return bytes(out)


def opened(key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
    out = bytearray(len(data) - 16)
    Xaes(key).open_into(nonce, data, associated_data, out)
    return bytes(out)


@pytest.mark.parametrize(
    ("key", "associated_data", "expected"),
    [
        # The most significant bit of AES(key, 0) is 0 for the first key and 1 for the second: both ways of CMAC's subkey.
        pytest.param(
            b"\1" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271", id="no bit carried"
        ),
        pytest.param(
            b"\3" * 32,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
            id="a bit carried",
        ),
    ],
)
def test_the_published_vectors(key: bytes, associated_data: bytes, expected: str) -> None:
    assert sealed(key, NONCE, PLAIN, associated_data).hex() == expected
    assert opened(key, NONCE, bytes.fromhex(expected), associated_data) == PLAIN


def test_the_accumulated_vectors() -> None:
    # SHAKE128 gives, ten thousand times, key, nonce, a length and so much plaintext, a length and so much associated data.
    source = memoryview(hashlib.shake_128(b"").digest(10_000 * (32 + 24 + 2 + 2 * 255)))
    at = 0

    def take(length: int) -> bytes:
        nonlocal at
        at += length
        return bytes(source[at - length : at])

    total = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = take(32), take(24)
        plain = take(take(1)[0])
        associated_data = take(take(1)[0])
        data = sealed(key, nonce, plain, associated_data)
        assert opened(key, nonce, data, associated_data) == plain
        total.update(data)
    assert total.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@pytest.mark.parametrize("size", [0, 12, 16, 23, 25])
def test_a_nonce_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        sealed(bytes(32), bytes(size), PLAIN, b"")
    with pytest.raises(FormatError):
        opened(bytes(32), bytes(size), bytes(28), b"")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        Xaes(bytes(size))


@pytest.mark.parametrize("part", ["key", "nonce", "data", "associated data"])
def test_any_other_byte_does_not_open(part: str) -> None:
    parts = {
        "key": bytes(32),
        "nonce": NONCE,
        "data": sealed(bytes(32), NONCE, PLAIN, b"a"),
        "associated data": b"a",
    }
    for position in range(len(parts[part])):
        changed = dict(parts)
        value = bytearray(changed[part])
        value[position] ^= 1
        changed[part] = bytes(value)
        with pytest.raises(InvalidTag):
            opened(changed["key"], changed["nonce"], changed["data"], changed["associated data"])


def test_several_threads_share_one_key() -> None:
    one = Xaes(bytes(32))
    expected = sealed(bytes(32), NONCE, PLAIN, b"")
    wrong: list[bytes] = []

    def work() -> None:
        for _ in range(500):
            out = bytearray(28)
            one.seal_into(NONCE, PLAIN, b"", out)
            if out != expected:
                wrong.append(bytes(out))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
