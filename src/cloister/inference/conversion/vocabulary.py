"""What a GGUF file says of a tokenizer: tokens, their kinds, and how text is cut into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from cloister.errors import InferenceError
from cloister.inference.conversion.container import Pairs

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""``tokenizer.ggml.token_type``; the numbers of SentencePiece."""
MAX_TOKEN: Final = 1 << 16
"""Bytes of one token."""

Special = Literal["bos", "eos", "eot", "unknown", "padding"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer in llama.cpp's words."""

    model: Literal["gpt2", "llama"]
    tokens: Sequence[bytes]
    types: Sequence[int]
    pre: str | None = None
    """Name of the rule that splits text before bytes are merged."""
    merges: Sequence[bytes] | None = None
    scores: Sequence[float] | None = None
    special: Mapping[Special, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = False
    template: str | None = None
    notes: tuple[str, ...] = ()

    def add_to(self, pairs: Pairs) -> None:
        pairs.text("tokenizer.ggml.model", self.model)
        if self.pre is not None:
            pairs.text("tokenizer.ggml.pre", self.pre)
        pairs.strings("tokenizer.ggml.tokens", self.tokens)
        pairs.integers("tokenizer.ggml.token_type", self.types)
        if self.scores is not None:
            pairs.numbers("tokenizer.ggml.scores", self.scores)
        if self.merges is not None:
            pairs.strings("tokenizer.ggml.merges", self.merges)
        for name, number in self.special.items():
            pairs.count_of(f"tokenizer.ggml.{name}_token_id", number)
        pairs.flag("tokenizer.ggml.add_bos_token", self.add_bos)
        pairs.flag("tokenizer.ggml.add_eos_token", self.add_eos)
        pairs.flag("tokenizer.ggml.add_space_prefix", self.space_prefix)
        if self.template is not None:
            pairs.text("tokenizer.chat_template", self.template)


def filled(
    numbers: Mapping[int, tuple[bytes, int]], length: int
) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """Tokens and types by number, ``length`` of them; numbers that nobody uses get a token that no text has.

    Raises :class:`InferenceError` where there are more tokens than the model has embeddings.
    """
    if numbers and max(numbers) >= length:
        raise InferenceError(
            f"the tokenizer has the token {max(numbers)}, and the model embeddings for {length} only",
            todo="convert the tokenizer that belongs to the model",
        )
    if any(len(text) > MAX_TOKEN for text, _ in numbers.values()):
        raise InferenceError(f"the tokenizer has a token over {MAX_TOKEN} bytes")
    known = {text for text, _ in numbers.values()}
    tokens, types = [], []
    for place in range(length):
        text, kind = numbers.get(place, (f"[PAD{place}]".encode(), UNUSED))
        if place not in numbers and text in known:
            text += b"-"
        tokens.append(text)
        types.append(kind)
    return tuple(tokens), tuple(types)
