"""A model's tokenizer, twice: one that cuts and joins text, and the table of tokens that OpenVINO GenAI wants.

Text is cut and joined by the ``tokenizers`` library: from the model's own ``tokenizer.json``, or from what a GGUF file says.
GenAI has tokenizers too, but none for SentencePiece's way in a GGUF file, and none that joins token by token. What it needs
is the bytes of every token, for answers in the form of a schema; these it gets as the head of a GGUF file without tensors,
in memory. Refused: rules of splitting that are not known word for word.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.conversion.container import Pairs, head
from cloister.inference.conversion.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from cloister.inference.engines.openvino_import import genai
from cloister.sealing.descriptors import write_all

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- a tmpfs
_SPACE: Final = "▁"
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final[Mapping[str, str]] = {
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "smaug-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
"""llama.cpp's name of a rule → the expression that cuts text before bytes are merged."""
_PRINTABLE: Final = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]


def tokenizer_of_keys(keys: Mapping[str, Any]) -> Any:
    """The ``tokenizers.Tokenizer`` that the keys of a GGUF file describe. Raises :class:`InferenceError`."""
    kind = keys.get("tokenizer.ggml.model")
    tokens, types = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise InferenceError("the model has no tokenizer", todo="convert it anew, with its tokenizer")
    types = types if isinstance(types, list) and len(types) == len(tokens) else [NORMAL] * len(tokens)
    texts = [token.decode(errors="replace") for token in tokens]
    if kind == "gpt2":
        made = _byte_level(keys, texts)
    elif kind == "llama":
        made = _pieces(keys, texts, types)
    else:
        raise InferenceError(
            f"the engine openvino has no tokenizer of the kind {kind}", todo="serve it with llamacpp"
        )
    from tokenizers import AddedToken  # noqa: PLC0415 -- native code: only for who opens this engine

    added = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    for text, sort in zip(texts, types, strict=True):
        if sort in added:
            token = AddedToken(text, special=added[sort], normalized=False)
            (made.add_special_tokens if added[sort] else made.add_tokens)([token])
    return made


def first_tokens(keys: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that stand before every text."""
    first = keys.get("tokenizer.ggml.bos_token_id")
    usual = keys.get("tokenizer.ggml.model") == "llama"
    return (first,) if isinstance(first, int) and keys.get("tokenizer.ggml.add_bos_token", usual) else ()


def last_tokens(keys: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end an answer."""
    names = ("eos", "eot", "eom")
    found = (keys.get(f"tokenizer.ggml.{name}_token_id") for name in names)
    return frozenset(token for token in found if isinstance(token, int))


def token_table(pieces: Sequence[bytes], special: frozenset[int], end: int) -> Any:
    """An ``openvino_genai.Tokenizer`` that knows the bytes of every token and cuts no text."""
    letters = byte_letters()
    pairs = Pairs()
    pairs.text("general.architecture", "llama")
    pairs.text("tokenizer.ggml.model", "gpt2")
    pairs.text("tokenizer.ggml.pre", "gpt-2")
    pairs.strings(
        "tokenizer.ggml.tokens",
        ["".join(letters[byte] for byte in piece).encode() or b"!" for piece in pieces],
    )
    pairs.integers(
        "tokenizer.ggml.token_type", [CONTROL if place in special else NORMAL for place in range(len(pieces))]
    )
    pairs.strings("tokenizer.ggml.merges", [b"! !"])
    pairs.count_of("tokenizer.ggml.eos_token_id", end)
    pairs.count_of("tokenizer.ggml.bos_token_id", end)
    pairs.count_of("tokenizer.ggml.padding_token_id", end)
    descriptor = os.memfd_create("cloister-tokens", os.MFD_CLOEXEC)
    try:
        write_all(descriptor, head(pairs, []), 0)
        with link_folder() as folder:
            link = folder / "tokens.gguf"
            link.symlink_to(f"/proc/self/fd/{descriptor}")
            return genai().Tokenizer(str(link))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def link_folder() -> Iterator[Path]:
    """A private folder for links, in memory where that can be had: on a disk the host could lead them elsewhere."""
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cloister-", dir=place) as name:
        yield Path(name)


def byte_letters() -> dict[int, str]:
    """GPT-2's table: each byte as a printable character; the printable ones stand for themselves."""
    others = [value for value in range(256) if value not in _PRINTABLE]
    return {value: chr(value) for value in _PRINTABLE} | {
        value: chr(256 + place) for place, value in enumerate(others)
    }


def _byte_level(keys: Mapping[str, Any], texts: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 -- as above

    rule = keys.get("tokenizer.ggml.pre")
    merges = keys.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise InferenceError("the model's tokenizer has no merges", todo="convert the model anew")
    pairs = [tuple(merge.decode(errors="replace").split(" ", 1)) for merge in merges]
    whole = rule in ("llama-bpe",)
    made = Tokenizer(
        models.BPE({text: place for place, text in enumerate(texts)}, pairs, ignore_merges=whole)
    )
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    full = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule in _SPLITS:
        cut = pre_tokenizers.Split(Regex(_SPLITS[str(rule)]), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, bare])
    elif rule == "gpt-2":
        made.pre_tokenizer = full
    elif rule == "starcoder":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), full])
    else:
        raise InferenceError(
            f"the engine openvino does not know how the tokenizer {rule} splits text",
            todo="serve the model with the engine llamacpp",
        )
    made.decoder = decoders.ByteLevel()
    return made


def _pieces(keys: Mapping[str, Any], texts: Sequence[str], types: Sequence[int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers  # noqa: PLC0415 -- as above

    scores = keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(texts):
        raise InferenceError("the model's tokenizer has no scores", todo="convert the model anew")
    numbers = {text: place for place, text in enumerate(texts)}
    usual = {text for text, kind in zip(texts, types, strict=True) if kind not in (BYTE, CONTROL, UNKNOWN)}
    merges: list[tuple[float, int, str, str]] = []
    for text in usual:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in usual and right in usual:
                merges.append((-scores[numbers[text]], numbers[left], left, right))
    unknown = keys.get("tokenizer.ggml.unknown_token_id")
    made = Tokenizer(
        models.BPE(
            numbers,
            [(left, right) for _, _, left, right in sorted(merges)],
            unk_token=texts[unknown] if isinstance(unknown, int) and unknown < len(texts) else None,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    prefix = keys.get("tokenizer.ggml.add_space_prefix", True) is True
    steps = [normalizers.Prepend(_SPACE)] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made
