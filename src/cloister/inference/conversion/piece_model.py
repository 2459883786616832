"""SentencePiece's own file, ``tokenizer.model``: a protocol buffer of pieces with scores and kinds, parsed strictly.

Older LLaMA and ChatGLM models have no other tokenizer file. Refused: a file that is cut short, wire types other than those
of the fields that are read, models that are not BPE (unigram is cut by another rule), more pieces than embeddings.
Source: SentencePiece's ``sentencepiece_model.proto``; THUDM's ``tokenization_chatglm.py`` for what stands behind the pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.configuration import Shape
from cloister.inference.conversion.vocabulary import BYTE, CONTROL, NORMAL, USER_DEFINED, Vocabulary, filled

MAX_PIECES: Final = 1 << 20
_BPE: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHATGLM: Final = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def read_piece_model(data: bytes, settings: Mapping[str, Any], shape: Shape) -> Vocabulary:
    """The vocabulary in ``data``; ``settings`` are those of ``tokenizer_config.json``, which may add tokens.

    Raises :class:`FormatError` and :class:`InferenceError`.
    """
    numbers: dict[int, tuple[bytes, int]] = {}
    scores: list[float] = []
    prefix, kind = True, 1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            if len(scores) == MAX_PIECES:
                raise FormatError(f"tokenizer.model has over {MAX_PIECES} pieces")
            text, score, type_ = _piece(value)
            numbers[len(scores)] = (text, type_)
            scores.append(score)
        elif field == 2 and isinstance(value, bytes):
            kind = next(
                (number for name, number in _fields(value) if name == 3 and isinstance(number, int)), kind
            )
        elif field == 3 and isinstance(value, bytes):
            flags = (number for name, number in _fields(value) if name == 3 and isinstance(number, int))
            prefix = next((bool(number) for number in flags), prefix)
    if not scores:
        raise FormatError("tokenizer.model has no pieces")
    if kind != _BPE:
        raise InferenceError("tokenizer.model is not BPE, and llama.cpp would cut text otherwise")
    if sum(kind == BYTE for _, kind in numbers.values()) != 256:
        raise InferenceError("tokenizer.model lacks some of the 256 bytes to fall back to")
    numbers |= _added(settings, shape, len(scores), numbers)
    tokens, types = filled(numbers, shape.vocabulary)
    scores += [0.0] * (len(tokens) - len(scores))
    return Vocabulary(
        model="llama", pre="default", tokens=tokens, types=types, scores=scores, space_prefix=prefix
    )


def _added(
    settings: Mapping[str, Any], shape: Shape, begin: int, known: Mapping[int, tuple[bytes, int]]
) -> dict[int, tuple[bytes, int]]:
    found: dict[int, tuple[bytes, int]] = {}
    listed = settings.get("added_tokens_decoder")
    for place, token in (listed if isinstance(listed, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else None
        if (
            not place.isascii()
            or not place.isdecimal()
            or len(place) > 8
            or not isinstance(text, str)
            or not text
        ):
            raise FormatError("tokenizer_config.json has an added token that cannot be")
        if int(place) not in known:
            found[int(place)] = (text.encode(), CONTROL if token.get("special") is True else USER_DEFINED)
    if shape.model_type == "chatglm":
        # ChatGLM's own tokenizer appends them in code; only what a file also lists tells whether it has roles.
        names = _CHATGLM + (
            _ROLES if not found or any(text == b"<|user|>" for text, _ in found.values()) else ()
        )
        for place, name in enumerate(names, begin):
            if place < shape.vocabulary:
                found[place] = (name.encode(), CONTROL)
    return found


def _piece(data: bytes) -> tuple[bytes, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = value
    if not text or not NORMAL <= kind <= BYTE or score != score:  # noqa: PLR0124 -- not a number
        raise FormatError("tokenizer.model has a piece that cannot be")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("tokenizer.model has a piece that is not UTF-8") from None
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        wire = tag & 7
        if wire == _VARINT:
            number, place = _varint(data, place)
            yield tag >> 3, number
            continue
        if wire == _BYTES:
            length, place = _varint(data, place)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise FormatError("tokenizer.model has a field of an unknown kind")
        if length > len(data) - place:
            raise FormatError("tokenizer.model ends too early")
        part = data[place : place + length]
        place += length
        if wire == _FIXED32:
            yield tag >> 3, float(struct.unpack("<f", part)[0])
        elif wire == _BYTES:
            yield tag >> 3, part


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise FormatError("tokenizer.model ends too early")
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise FormatError("tokenizer.model has a number that is too long")
