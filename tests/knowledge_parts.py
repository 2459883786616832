"""Documents, passages and vectors for tests of what keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np

from cloister.knowledge.passages import Passage
from cloister.knowledge.store import Document, Scored, Store

SIZE = 16


def document(
    name: str = "a.pdf", collection: str = "clinic", *, digest: bytes = b"d" * 32, passages: int = 1
) -> Document:
    return Document(collection, name, f"Title of {name}", digest, passages, 1_800_000_000)


def vectors(count: int, seed: int = 0) -> Any:
    found = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def put(store: Store, *texts: str, name: str = "a.pdf", collection: str = "clinic", seed: int = 0) -> Any:
    """The vectors of the passages."""
    own = vectors(len(texts), seed)
    passages = [Passage(text, ("Part", "Chapter"), 2, 3) for text in texts]
    assert store.add(
        document(name, collection, digest=bytes([seed]) * 32, passages=len(texts)), passages, own
    )
    return own


def ids(found: list[Scored]) -> list[int]:
    return [one for one, _ in found]


def texts(store: Store, found: list[Scored], *collections: str) -> list[str]:
    """Of what was found, in its order."""
    return [one.passage.text for one in store.passages(ids(found), collections or ["clinic"])]
