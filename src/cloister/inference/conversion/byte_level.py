"""Byte-level BPE out of ``tokenizer.json``: GPT-2's way, with the splitting rule of the model it was taught for.

llama.cpp has the rules by name, compiled in; the file has them as expressions. A rule is found by comparing the whole
expression, never by the model's name. Refused: any other rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.vocabulary import (
    CONTROL,
    MAX_TOKEN,
    NORMAL,
    USER_DEFINED,
    Vocabulary,
    filled,
)

MAX_TOKENS: Final = 1 << 21
MAX_MERGES: Final = 1 << 22
MAX_STEPS: Final = 8
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WHOLE: Final = ("bytes", False, True)
_BARE: Final = ("bytes", False, False)
_RULES: Final[Mapping[tuple[tuple[object, ...], ...], Mapping[bool, str]]] = {
    (_WHOLE,): {False: "gpt-2"},
    (("digits", True), _WHOLE): {False: "starcoder"},
    (("split", _WORDS + r"\p{N}{1,3}" + _REST, "Isolated", False), _BARE): {
        True: "llama-bpe",
        False: "smaug-bpe",
    },
    (("split", _WORDS + r"\p{N}" + _REST, "Isolated", False), _BARE): {False: "qwen2"},
}
"""Steps → whether whole words are looked up before merging → llama.cpp's name."""
_WITHOUT_EFFECT: Final = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def byte_level(found: Mapping[str, Any], length: int) -> Vocabulary:
    """The vocabulary in ``found``, a parsed ``tokenizer.json``, for a model of ``length`` embeddings.

    Raises :class:`FormatError` and :class:`InferenceError`.
    """
    model = found["model"]
    for name in _WITHOUT_EFFECT:
        if model.get(name):
            raise InferenceError(f"the tokenizer has {name}, which llama.cpp does not know")
    notes = _normalised(found.get("normalizer"))
    steps = tuple(_steps(found.get("pre_tokenizer")))
    rule = _RULES.get(steps, {}).get(model.get("ignore_merges") is True)
    if rule is None:
        raise InferenceError(
            "the tokenizer splits text by a rule that this conversion does not know",
            todo="serve the model with the torch engine, or convert it with llama.cpp's own converter",
        )
    tokens, types = filled(numbered(found), length)
    return Vocabulary(
        model="gpt2",
        pre=rule,
        tokens=tokens,
        types=types,
        merges=[f"{left} {right}".encode() for left, right in merge_pairs(model)],
        notes=notes,
    )


def numbered(found: Mapping[str, Any], normal: int = NORMAL) -> dict[int, tuple[bytes, int]]:
    """Number → token and kind, out of a file's vocabulary and its added tokens. Raises :class:`FormatError`."""
    vocabulary = found["model"].get("vocab")
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_TOKENS:
        raise FormatError("tokenizer.json has no vocabulary that can be")
    numbers: dict[int, tuple[bytes, int]] = {}
    for text, place in vocabulary.items():
        if type(place) is not int or not 0 <= place < MAX_TOKENS or place in numbers:
            raise FormatError("tokenizer.json has a token without a number of its own")
        numbers[place] = (text.encode(), normal)
    added = found.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MAX_TOKENS:
        raise FormatError("tokenizer.json has added tokens that cannot be")
    for token in added:
        place, text = (token.get("id"), token.get("content")) if isinstance(token, dict) else (None, None)
        if type(place) is not int or not 0 <= place < MAX_TOKENS or not isinstance(text, str) or not text:
            raise FormatError("tokenizer.json has an added token that cannot be")
        if place in numbers and numbers[place][0] != text.encode():
            raise FormatError("tokenizer.json gives one number to two tokens")
        numbers[place] = (text.encode(), CONTROL if token.get("special") is True else USER_DEFINED)
    if len({text for text, _ in numbers.values()}) != len(numbers):
        raise FormatError("tokenizer.json has a token twice")
    return numbers


def merge_pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges in order; an older file has each as one string. Raises :class:`FormatError`."""
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise FormatError("tokenizer.json has no merges that can be")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(
                isinstance(part, str) and 0 < len(part) <= MAX_TOKEN and " " not in part for part in pair
            )
        ):
            raise FormatError("tokenizer.json has a merge that is not of two tokens")
        yield pair[0], pair[1]


def _normalised(normalizer: object) -> tuple[str, ...]:
    if normalizer is None or normalizer == {"type": "Sequence", "normalizers": []}:
        return ()
    if normalizer == {"type": "NFC"}:
        return (
            "text that is not in Unicode's normal form C is cut otherwise than by the model's own tokenizer",
        )
    raise InferenceError(
        "the tokenizer changes text before it cuts it, in a way that llama.cpp does not know"
    )


def _steps(found: object) -> Iterator[tuple[object, ...]]:
    if not isinstance(found, dict):
        return
    steps = found.get("pretokenizers") if found.get("type") == "Sequence" else [found]
    if not isinstance(steps, list) or len(steps) > MAX_STEPS:
        raise FormatError("tokenizer.json has a pre_tokenizer that cannot be")
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            yield "bytes", step.get("add_prefix_space", True) is True, step.get("use_regex", True) is True
        elif kind == "Digits":
            yield "digits", step.get("individual_digits") is True
        elif kind == "Split":
            pattern = step.get("pattern")
            text = pattern.get("Regex") if isinstance(pattern, dict) else None
            yield "split", str(text), str(step.get("behavior")), step.get("invert") is True
        else:
            yield ("unknown",)
