"""Texts as vectors of length one: the mean of an encoder's last hidden states, in float32.

The encoder is a Hugging Face directory that lies in memory, as ``all-MiniLM-L6-v2`` is; only architectures that transformers
has itself are opened, from safetensors alone. Texts of like length are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

BATCH_TOKENS: Final = 4096
"""Of one computation, padding included."""
SLICE: Final = 1024
"""Texts that are cut into tokens at once."""
SPECIAL: Final = 2
"""Tokens that an encoder puts around a text."""


class Embed(Protocol):
    """Computes vectors."""

    def __call__(self, texts: Sequence[str], *, told: Callable[[int], None] = ...) -> Vectors:
        """(texts, dimensions); ``told`` hears how many more are done."""


class TextEncoder(Embed, Protocol):
    """Computes vectors by a model that an index is made with."""

    @property
    def name(self) -> str:
        """Of the model: vectors of another one are not compared with these."""

    @property
    def dimensions(self) -> int: ...

    @property
    def length(self) -> int:
        """Tokens of a text that it reads, its own marks left out; what is longer is cut."""

    @property
    def count(self) -> Callable[[str], int]:
        """Tokens of a text."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One model. Threads may share it."""

    name: str
    dimensions: int
    length: int
    """Tokens of a text that it reads, its own marks left out; what is longer is cut."""
    _model: Any
    _tokenizer: Any

    @classmethod
    def open(cls, folder: Path, *, name: str, length: int = 256) -> Encoder:
        """``length`` counts the encoder's own marks. Raises UsageError."""
        from cloister.inference.pretrained import open_encoder, open_tokenizer  # noqa: PLC0415 -- loads torch

        model, tokenizer = open_encoder(folder).eval(), open_tokenizer(folder).backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        longest = min(length, int(model.config.max_position_embeddings))
        return cls(name, int(model.config.hidden_size), longest - SPECIAL, model, tokenizer)

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def __call__(self, texts: Sequence[str], *, told: Callable[[int], None] = lambda _done: None) -> Vectors:
        import numpy as np  # noqa: PLC0415 -- of the room alone

        found = np.zeros((len(texts), self.dimensions), np.float32)
        # In slices: what is known of each token beside its number takes a hundred times its text's memory.
        for start in range(0, len(texts), SLICE):
            found[start : start + SLICE] = self._slice(texts[start : start + SLICE], told)
        return found

    def _slice(self, texts: Sequence[str], told: Callable[[int], None]) -> Vectors:
        import numpy as np  # noqa: PLC0415 -- as above
        import torch  # noqa: PLC0415 -- heavy

        found = np.zeros((len(texts), self.dimensions), np.float32)
        tokens = [self._ids(text) for text in self._tokenizer.encode_batch(list(texts))]
        for batch in batches([len(one) for one in tokens]):
            width = max(len(tokens[place]) for place in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, place in enumerate(batch):
                own = torch.tensor(tokens[place])
                ids[row, : len(own)], mask[row, : len(own)] = own, 1
            with torch.inference_mode():
                states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(states.dtype)
                means = (states * weights).sum(1) / weights.sum(1)
                found[batch] = torch.nn.functional.normalize(means, dim=1).numpy()
            told(len(batch))
        return found

    def _ids(self, encoded: Any) -> list[int]:
        ids: list[int] = encoded.ids
        return ids if len(ids) <= self.length + SPECIAL else [*ids[: self.length + 1], ids[-1]]


def batches(lengths: Sequence[int], *, tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Places of texts that are computed together: longest first, at most ``tokens`` with padding, or one text."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= tokens:
            found[-1].append(place)
        else:
            found.append([place])
    return found
