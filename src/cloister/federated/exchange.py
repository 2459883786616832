"""How parties are asked: requests, replies, and what carries them. Over Flower that is flower/server.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

NOT_READY: Final = "it is not ready any more: its evidence ended, or its workload is gone"
"""Why a party is not in a round that it was asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one party is asked: to train from a model, to score it, or a step of secure aggregation."""

    kind: str
    run: str
    number: int
    model: str
    """SHA-256 of the model's safetensors."""
    content: bytes = b""
    """The model, or empty where the party has it already; in secure aggregation a message."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, from whom by the key of its connection; the rest is what it says."""

    party: str
    run: str
    number: int
    content: bytes
    examples: int
    metrics: Mapping[str, float]
    error: str = ""
    """Why there is none."""


class Exchange(Protocol):
    """How parties are asked."""

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        """Replies as they come, of some of the parties, until all are there or time is over."""

    def ready(self) -> frozenset[str]:
        """Parties whose evidence holds at this moment."""
