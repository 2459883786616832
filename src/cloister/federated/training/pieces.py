"""Words as an encoder reads them: in sub-words, and a long sentence in pieces that overlap.

A word is what its first sub-word is (Devlin et al. 2019); the others are read and not asked. A sentence that is longer
than the encoder's input is read in windows, and each word counts in the one window that has most to both sides of it
(Souza et al. 2019, arXiv 1909.10649, section 4.2). Pure: the tokenizer is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import UsageError

MAX_SUBWORDS: Final = 32
"""Of one word that are read; the rest of a longer one (a sequence of a gene, an address) tells no more."""
Encode = Callable[[Sequence[str]], list[list[int]]]
"""Words → the sub-words of each; none for a word that the tokenizer drops."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A window on a sentence."""

    tokens: tuple[int, ...]
    """What the encoder reads, its marks at both ends included."""
    heads: tuple[int, ...]
    """Where in ``tokens`` the first sub-word of each word stands that counts here."""
    start: int
    """The first of those words, in the sentence."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What the encoder wants around its input, and in place of what it does not know."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    unknown: int


def encoder_of(tokenizer: Any) -> tuple[Encode, Marks]:
    """Of a fast tokenizer of ``transformers``. Raises UsageError for one that does not say its words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.unk_token_id is None:
        raise UsageError("the encoder's tokenizer has no tokenizer.json, or no unknown token")
    backend.no_truncation()
    backend.no_padding()
    template = backend.encode([tokenizer.unk_token], is_pretokenized=True).ids
    place = template.index(tokenizer.unk_token_id)
    marks = Marks(tuple(template[:place]), tuple(template[place + 1 :]), tokenizer.unk_token_id)

    def encode(words: Sequence[str]) -> list[list[int]]:
        found = backend.encode(list(words), is_pretokenized=True, add_special_tokens=False)
        parts: list[list[int]] = [[] for _ in words]
        for token, word in zip(found.ids, found.word_ids, strict=True):
            parts[word].append(token)
        return parts

    return encode, marks


def pieces(
    words: Sequence[str], encode: Encode, marks: Marks, *, length: int, stride: int
) -> tuple[Piece, ...]:
    """``words`` in windows of at most ``length`` tokens, of which the next begins ``stride`` sub-words later."""
    room = length - len(marks.before) - len(marks.after)
    if room < MAX_SUBWORDS or not 1 <= stride <= room - MAX_SUBWORDS + 1:
        raise UsageError(
            f"windows of {length} tokens, {stride} apart, do not hold words of {MAX_SUBWORDS} sub-words",
            todo="make windows longer, or the stride smaller",
        )
    parts = [part[:MAX_SUBWORDS] or [marks.unknown] for part in encode(words)]
    spans = _windows([len(part) for part in parts], room, stride)
    owners = _owners([len(part) for part in parts], spans)
    found = []
    for number, (begin, end) in enumerate(spans):
        tokens = list(marks.before)
        heads = []
        for word in range(begin, end):
            if owners[word] == number:
                heads.append(len(tokens))
            tokens.extend(parts[word])
        if heads:
            found.append(Piece((*tokens, *marks.after), tuple(heads), owners.index(number)))
    return tuple(found)


def _windows(sizes: Sequence[int], room: int, stride: int) -> list[tuple[int, int]]:
    """Words (from, to) of each window."""
    spans = []
    begin = 0
    while True:
        end, used = begin, 0
        while end < len(sizes) and used + sizes[end] <= room:
            used += sizes[end]
            end += 1
        spans.append((begin, end))
        if end == len(sizes):
            return spans
        moved = 0
        while moved < stride and begin < end - 1:
            moved += sizes[begin]
            begin += 1
        begin = max(begin, spans[-1][0] + 1)


def _owners(sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each word the window in which the lesser of its two contexts is greatest; the earlier one of equals."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + size)
    owners = []
    for word in range(len(sizes)):
        contexts = [
            (min(places[word] - places[begin], places[end] - places[word + 1]), -number)
            for number, (begin, end) in enumerate(spans)
            if begin <= word < end
        ]
        owners.append(-max(contexts)[1])
    return owners
