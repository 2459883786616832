"""BPE as SentencePiece makes it, out of ``tokenizer.json``: spaces are ``▁``, and what is no token falls back to bytes.

llama.cpp joins neighbours by the score of what they become, ``tokenizers`` by the rank of their merge; a token's score is
here its first merge's rank, negated, which comes to the same where all merges into one token stand together. Refused: a
vocabulary without its 256 bytes, and changes of the text other than of spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.conversion.byte_level import merge_pairs, numbered
from cloister.inference.conversion.vocabulary import BYTE, NORMAL, UNKNOWN, Vocabulary, filled

_SPACE: Final = "▁"
_REPLACE: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND: Final = {"type": "Prepend", "prepend": _SPACE}
_UNREACHED: Final = -1e9
"""The score of a token that no merge makes."""


def pieces(found: Mapping[str, Any], length: int) -> Vocabulary:
    """The vocabulary in ``found``, a parsed ``tokenizer.json``, for a model of ``length`` embeddings.

    Raises :class:`FormatError` and :class:`InferenceError`.
    """
    model = found["model"]
    prefix, notes = _spaces(found)
    numbers = numbered(found)
    unknown = model.get("unk_token")
    byte_names = {f"<0x{byte:02X}>".encode() for byte in range(256)}
    for place, (text, kind) in numbers.items():
        if text in byte_names:
            numbers[place] = (text, BYTE)
            byte_names.discard(text)
        elif isinstance(unknown, str) and text == unknown.encode():
            numbers[place] = (text, UNKNOWN)
        elif kind == NORMAL and not text:
            raise InferenceError("the tokenizer has an empty token")
    if byte_names:
        raise InferenceError(f"the tokenizer lacks {len(byte_names)} of the 256 bytes to fall back to")
    ranks: dict[bytes, int] = {}
    last: dict[bytes, int] = {}
    runs: dict[bytes, int] = {}
    for rank, (left, right) in enumerate(merge_pairs(model)):
        text = (left + right).encode()
        ranks.setdefault(text, rank)
        runs[text] = runs.get(text, 0) + (last.get(text) != rank - 1)
        last[text] = rank
    if any(count > 1 for count in runs.values()):
        notes += ("some merges of the tokenizer stand apart, so that a rare word may be cut otherwise",)
    tokens, types = filled(numbers, length)
    scores = [
        0.0 if kind != NORMAL or _single(text) else float(-ranks[text]) if text in ranks else _UNREACHED
        for text, kind in zip(tokens, types, strict=True)
    ]
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        space_prefix=prefix,
        notes=notes,
    )


def _single(text: bytes) -> bool:
    return len(text.decode("utf-8")) == 1


def _spaces(found: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a space is set before a text, and what to say about it. Two ways to write the same are known."""
    normalizer, splitter = found.get("normalizer"), found.get("pre_tokenizer")
    steps = (
        normalizer.get("normalizers")
        if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence"
        else None
    )
    if splitter is None:
        if steps == [_PREPEND, _REPLACE]:
            return True, ()
        if steps == [_REPLACE] or normalizer == _REPLACE:
            return False, ()
    elif isinstance(splitter, dict) and splitter.get("type") == "Metaspace" and normalizer is None:
        scheme = splitter.get("prepend_scheme", "always")
        if splitter.get("replacement") == _SPACE and scheme in ("always", "first", "never"):
            note = "llama.cpp sets a space after every special token, the model's own tokenizer at the beginning only"
            return scheme != "never", (note,) if scheme == "first" else ()
    raise InferenceError(
        "the tokenizer changes text before it cuts it, in a way that llama.cpp does not know"
    )
