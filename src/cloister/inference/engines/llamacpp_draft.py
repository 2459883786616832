"""Draft models: a small model may guess for a large one only if both have the same vocabulary.

llama.cpp would say nothing and go on without guesses. So both are compared here as it compares them: the kind of
tokenizer, the tokens at the beginning and end of a text, and every token that both have; at most
:data:`PADDING` may be missing in one, since some models pad their vocabulary.
Source: llama.cpp's common/speculative.cpp, ``common_speculative_are_compatible``.
"""

from __future__ import annotations

from typing import Final

from cloister.errors import UsageError
from cloister.inference.gguf_header import GgufVocabulary, read_gguf_vocabulary
from cloister.inference.model_files import ModelFiles

PADDING: Final = 128
_CONTROL: Final = 5
"""Tokens at the beginning that may differ: unknown, begin, end and the like."""


def checked_draft(model: ModelFiles, draft: ModelFiles | None) -> str | None:
    """Where ``draft`` can be loaded from. Raises :class:`UsageError` and InferenceError that name it."""
    if draft is None:
        return None
    if draft.kind != "gguf":
        raise UsageError("the draft model is no GGUF file", todo="convert it")
    what = f"the draft model {draft.main_name}"
    own = read_gguf_vocabulary(model.main, what=model.main_name)
    other = read_gguf_vocabulary(draft.main, what=what)
    if not _compatible(own, other):
        raise UsageError(
            f"{what} has another vocabulary than {model.main_name}",
            todo="draft with a model of the same family",
        )
    return str(draft.path(draft.main_name))


def _compatible(one: GgufVocabulary, other: GgufVocabulary) -> bool:
    shared = min(len(one.tokens), len(other.tokens))
    return (
        one.kind == other.kind
        and one.special == other.special
        and abs(len(one.tokens) - len(other.tokens)) <= PADDING
        and one.tokens[_CONTROL:shared] == other.tokens[_CONTROL:shared]
    )
