"""What the sealing tests share: a key source of one key, a directory sealed for them, and byte-wise damage."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

from cloister.errors import KeyUnavailable
from cloister.sealing.directory import seal_directory
from cloister.sealing.index import Index
from cloister.sealing.signing import SigningKey

URI = "kbs:///default/key/medquad"
KEK = hashlib.sha256(b"a key-encryption key for tests").digest()
OTHER_KEK = hashlib.sha256(b"another key-encryption key").digest()
OWNER = SigningKey(hashlib.sha256(b"the owner's seed").digest())
STRANGER = SigningKey(hashlib.sha256(b"a stranger's seed").digest())


class Keys:
    """A key source of a fixed table; counts what it was asked for."""

    def __init__(self, table: dict[str, bytes] | None = None) -> None:
        self.table = {URI: KEK} if table is None else table
        self.asked: list[str] = []

    def key(self, uri: str) -> bytes:
        self.asked.append(uri)
        if uri not in self.table:
            raise KeyUnavailable(f"no key at {uri}")
        return self.table[uri]


def counted_entropy(seed: bytes = b"") -> Callable[[int], bytes]:
    """Reproducible "randomness" for vectors: SHA-256 in counter mode."""
    numbers = itertools.count()

    def draw(length: int) -> bytes:
        blocks = (
            hashlib.sha256(seed + next(numbers).to_bytes(8, "big")).digest() for _ in range(0, length, 32)
        )
        return b"".join(blocks)[:length]

    return draw


def patterned(size: int, seed: int = 0) -> bytes:
    """``size`` bytes in which no two segments are alike."""
    return hashlib.shake_256(seed.to_bytes(4, "big")).digest(size)


def sealed_folder(place: Path, files: dict[str, bytes], **options: object) -> tuple[Path, Index]:
    """Write ``files`` below ``place``, seal them; the sealed directory and its index."""
    number = sum(1 for _ in place.iterdir())
    source = place / f"plain-{number}"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    settings = {"key_uri": URI, "kek": KEK, "signing_key": OWNER, "workers": 2, **options}
    out = place / f"sealed-{number}"
    index = seal_directory(source, out, **settings)  # type: ignore[arg-type]
    return out, index


def alter(path: Path, offset: int, *, mask: int = 1) -> None:
    """Flip bits of one byte; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)
