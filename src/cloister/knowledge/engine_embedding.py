"""Texts as vectors of length one by the inference engine: an embedding model in a GGUF file, on llama.cpp.

How the tokens' states become one vector is the model's own (mean, first or last token), the mean where it does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.errors import InferenceError, UsageError
from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from cloister.inference.token_count import Count, counter_of

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

LENGTH: Final = 512
"""Tokens of a text, its marks included: what a passage is cut to."""
MARKS: Final = 2
BATCH: Final = 16
"""Texts of one request."""


@dataclass(frozen=True, slots=True)
class EngineEncoder:
    """One model in an engine of its own. Threads may share it."""

    name: str
    dimensions: int
    length: int
    count: Count
    _engine: Engine

    @classmethod
    def open(cls, files: ModelFiles, *, name: str, threads: int | None = None) -> EngineEncoder:
        """``files`` may be closed afterwards. Raises UsageError, InferenceError."""
        count = counter_of(files)
        engine = open_engine(
            "llamacpp", files, EngineSettings(context_length=LENGTH, slots=1, threads=threads)
        )
        if engine.embedding_length is None:
            engine.close()
            raise UsageError("the encoder makes no vectors", todo="name an embedding model with --encoder")
        return cls(name, engine.embedding_length, engine.context_length - MARKS, count, engine)

    def close(self) -> None:
        self._engine.close()

    def __call__(self, texts: Sequence[str], *, told: Callable[[int], None] = lambda _done: None) -> Vectors:
        """(texts, dimensions). Raises InferenceError."""
        import numpy as np  # noqa: PLC0415 -- of the room alone

        found = np.zeros((len(texts), self.dimensions), np.float32)
        for start in range(0, len(texts), BATCH):
            part = [self._short(text) for text in texts[start : start + BATCH]]
            answer = self._engine.embed({"input": part, "encoding_format": "float"})
            for one in answer["data"]:
                found[start + int(one["index"])] = one["embedding"]
            told(len(part))
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        if not np.isfinite(found).all() or not lengths.all():
            raise InferenceError("the encoder's vectors are no numbers", todo="name another with --encoder")
        return np.asarray(found / lengths, np.float32)

    def _short(self, text: str) -> str:
        """What of ``text`` the model reads; of nothing a space."""
        while (tokens := self.count(text)) > self.length:
            text = text[: max(1, min(len(text) - 1, len(text) * self.length // tokens))]
        return text or " "
