"""Read the head of a GGUF model file: enough to say in one line why a file is not a model.

The engine itself only says that it failed. So before it is asked, the magic, version, key-value pairs and
tensor table are parsed here, with every count and length bounded, and the file must be as long as its table
says. Nothing here reads weights, and nothing is executed.

Source: ggml's docs/gguf.md, version 3 (little endian).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import InferenceError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER: Final = 256 << 20
"""Vocabularies of a quarter million tokens with merges stay below 32 MiB."""
MAX_PAIRS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 17
MAX_STRING: Final = 16 << 20
MAX_ARRAY: Final = 1 << 24

_TOKENS: Final = "tokenizer.ggml.tokens"
_SPECIAL: Final = ("bos_token_id", "add_bos_token", "eos_token_id", "add_eos_token")
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"} | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING: Final = 8
_ARRAY: Final = 9
_TENSOR_BYTES: Final = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
} | {
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    30: (1, 2),
}
"""ggml type -> (elements of a block, bytes of a block); other types are left to the engine."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the head of a model says about it; None where it does not say."""

    architecture: str
    name: str | None
    trained_context: int | None
    """Tokens of the longest text it was trained on."""
    embedding_length: int | None
    """Numbers in one hidden state, and so in one embedding."""
    chat_template: str | None
    """Jinja source of how messages become one text."""
    pooling: int | None = None
    """How an embedding model makes one vector of its tokens' (llama.cpp's number: 1 mean, 2 first, 3 last)."""
    heads: int | None = None
    kv_heads: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Tensor → sides, the quickest first. Of thousands of tensors, so no part of what a header is compared by."""


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What a model's tokens are."""

    kind: str
    """Of the tokenizer: ``llama``, ``gpt2`` and so on."""
    special: tuple[object, ...]
    """Which token begins and ends a text, and whether it is added."""
    tokens: tuple[bytes, ...] = field(repr=False)


def read_gguf_vocabulary(descriptor: int, *, what: str) -> GgufVocabulary:
    """The vocabulary of the model behind ``descriptor``. Raises as :func:`read_gguf_header`."""
    reader = _Reader(descriptor, os.fstat(descriptor).st_size, what)
    _, values = _pairs(reader, keep=_TOKENS)
    kind, tokens = values.get("tokenizer.ggml.model"), values.get(_TOKENS)
    if not isinstance(kind, str) or not isinstance(tokens, tuple):
        raise InferenceError(f"{what} says nothing of its vocabulary", todo="convert it anew")
    return GgufVocabulary(kind, tuple(values.get(f"tokenizer.ggml.{name}") for name in _SPECIAL), tokens)


def read_gguf_header(descriptor: int, *, what: str) -> GgufHeader:
    """Parse the head of the file behind ``descriptor`` (not moved, not closed); ``what`` names it in errors.

    Raises :class:`InferenceError`.
    """
    size = os.fstat(descriptor).st_size
    reader = _Reader(descriptor, size, what)
    tensors, values = _pairs(reader)
    end, shapes = _tensor_table(reader, tensors, values)
    if end > size:
        raise InferenceError(
            f"{what} is truncated: {size} bytes long, its tensors end at {end}", todo="copy it again"
        )
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise InferenceError(f"{what} is a GGUF file, but no model", todo="name a model")
    name = values.get("general.name")
    context = values.get(f"{architecture}.context_length")
    embedding = values.get(f"{architecture}.embedding_length")
    template = values.get("tokenizer.chat_template")
    pooling = values.get(f"{architecture}.pooling_type")
    heads = values.get(f"{architecture}.attention.head_count")
    kv_heads = values.get(f"{architecture}.attention.head_count_kv")
    return GgufHeader(
        architecture=architecture,
        name=name if isinstance(name, str) else None,
        trained_context=context if isinstance(context, int) else None,
        embedding_length=embedding if isinstance(embedding, int) else None,
        chat_template=template if isinstance(template, str) else None,
        pooling=pooling if isinstance(pooling, int) else None,
        heads=heads if isinstance(heads, int) else None,
        kv_heads=kv_heads if isinstance(kv_heads, int) else None,
        shapes=shapes,
    )


def _pairs(reader: _Reader, *, keep: str | None = None) -> tuple[int, dict[str, object]]:
    """How many tensors there are, and every pair; of arrays only ``keep``, if it is one of strings."""
    what = reader.what
    if reader.size < 4 or reader.take(4) != MAGIC:
        raise InferenceError(f"{what} is not a GGUF model", todo="convert it, or name another file")
    version = reader.number("<I")
    if version not in VERSIONS:
        raise InferenceError(
            f"{what} is GGUF version {version}; this release reads {VERSIONS}", todo="convert it anew"
        )
    tensors = reader.bounded(reader.number("<Q"), MAX_TENSORS)
    pairs = reader.bounded(reader.number("<Q"), MAX_PAIRS)
    values: dict[str, object] = {}
    for _ in range(pairs):
        key = reader.string()
        values[key] = reader.value(keep=key == keep)
    return tensors, values


def _tensor_table(
    reader: _Reader, tensors: int, values: dict[str, object]
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Where the tensors end, and their shapes."""
    furthest = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(tensors):
        name = reader.string()
        shape = tuple(reader.number("<Q") for _ in range(reader.bounded(reader.number("<I"), 8)))
        shapes[name] = shape
        elements = math.prod(shape)
        kind = reader.number("<I")
        offset = reader.number("<Q")
        block, width = _TENSOR_BYTES.get(kind, (1, 0))
        furthest = max(furthest, offset + elements // block * width)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InferenceError(f"{reader.what} has an alignment that cannot be")
    return -(-reader.position // alignment) * alignment + furthest, shapes


class _Reader:
    def __init__(self, descriptor: int, size: int, what: str) -> None:
        self.what = what
        self.position = 0
        self._descriptor = descriptor
        self.size = size
        self._window = b""
        self._start = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.size:
            raise InferenceError(f"{self.what} is truncated inside its header", todo="copy it again")
        if end > MAX_HEADER:
            raise InferenceError(f"{self.what} has a header over {MAX_HEADER} bytes")
        if end > self._start + len(self._window):
            self._start = self.position
            self._window = os.pread(self._descriptor, max(count, 1 << 20), self.position)
        data = self._window[self.position - self._start : end - self._start]
        if len(data) != count:
            raise InferenceError(f"{self.what} changed while it was read", todo="copy it again")
        self.position = end
        return data

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def bounded(self, count: int, limit: int) -> int:
        if count > limit:
            raise InferenceError(f"{self.what} has a header that cannot be: {count} entries, over {limit}")
        return count

    def string(self) -> str:
        data = self.take(self.bounded(self.number("<Q"), MAX_STRING))
        return data.decode("utf-8", errors="replace")

    def value(self, *, keep: bool = False) -> object:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(keep=keep)
        return self._scalar(kind)

    def _scalar(self, kind: int) -> object:
        form = _SCALARS.get(kind)
        if form is None:
            raise InferenceError(f"{self.what} has a value of unknown type {kind} in its header")
        value: object = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def _array(self, *, keep: bool) -> tuple[bytes, ...] | None:
        """The strings of an array, where they are wanted; all else is passed over."""
        kind = self.number("<I")
        count = self.bounded(self.number("<Q"), MAX_ARRAY)
        if kind == _STRING:
            strings = []
            for _ in range(count):
                data = self.take(self.bounded(self.number("<Q"), MAX_STRING))
                if keep:
                    strings.append(data)
            return tuple(strings)
        form = _SCALARS.get(kind)
        if form is None:
            raise InferenceError(f"{self.what} has an array of unknown type {kind} in its header")
        for _ in range(count * struct.calcsize(form) // (1 << 20)):
            self.take(1 << 20)
        self.take(count * struct.calcsize(form) % (1 << 20))
        return None
