"""What the batch is asked for: jobs of one answer or one text each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from cloister.inference.engines.in_process import Event
from cloister.inference.engines.torch_sampling import Sampler


class Grammar(Protocol):
    """Which tokens may come next in one answer."""

    def allowed(self) -> torch.Tensor:
        """(vocabulary) bool. Raises InferenceError where the grammar is at a loss."""
        ...

    def took(self, token: int) -> bool:
        """Go on behind ``token``; True where nothing more can follow. Raises as ``allowed``."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One answer to be computed, or one text to be read."""

    prompt: Sequence[int]
    sampler: Sampler | None
    """None for a text that is only read, for its hidden states."""
    max_tokens: int
    ends: frozenset[int] = frozenset()
    top: int | None = None
    """Log probabilities to tell with each token."""
    tenant: bytes | None = None
    leader: Job | None = None
    """An answer to the same prompt that reads it for both."""
    grammar: Grammar | None = None
    tell: Callable[[Event], None] = lambda _: None
    """Called on the batch's thread, which it must not hold up."""
    cancelled: bool = False
    row: int = -1
    done: int = 0
    """Tokens whose keys are in memory."""
    cached: int = 0
    answer: list[int] = field(default_factory=list)
    total: torch.Tensor | None = None
    state: torch.Tensor | None = None
    """(width) the mean of the hidden states, when a text was read."""

    @property
    def reads(self) -> bool:
        return self.done < len(self.prompt)

    @property
    def waits(self) -> bool:
        """Whether its leader is still reading for both."""
        leader = self.leader
        return (
            leader is not None
            and self.done == 0
            and leader.row >= 0
            and leader.reads
            and not leader.cancelled
        )
