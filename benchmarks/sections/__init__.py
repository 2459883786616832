"""The sections of the scoreboard: one module each, with ``run(options) -> Result``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table as RichTable

from benchmarks.report import Table
from benchmarks.sides import SideFailedError

SECTIONS: Final = (
    "figure6",
    "engines",
    "channel",
    "busy_neighbour",
    "long_prompts",
    "large_models",
    "training",
    "loading",
    "verification",
    "attestation",
    "key_broker",
    "restore",
    "mounts",
    "parquet",
)
ON_REQUEST: Final = (
    "soak",
    "server_profile",
    "low_bit_memory",
    "federated_quality",
    "federated_cost",
    "knowledge_retrieval",
    "knowledge_answers",
)
"""Run by name alone."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the person at the keyboard chose."""

    quick: bool
    models: Path
    """Where models are made once and kept."""
    minutes: float = 30.0
    configurations: tuple[str, ...] = ()
    """Of the sections that compare them; empty for all."""
    asked_rounds: int | None = None

    def rounds(self, usual: int, quick: int = 1) -> int:
        return self.asked_rounds or (quick if self.quick else usual)

    def require(self, configuration: str) -> None:
        """Raise :class:`SideFailedError` for a configuration that is not wanted."""
        if self.configurations and configuration not in self.configurations:
            raise SideFailedError("not asked for")


def about(text: str | None) -> str:
    """A module's own words as a page's: the paragraphs, unwrapped."""
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


def of_rich(table: RichTable, note: str = "") -> Table:
    """A table that was made for the terminal."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return Table(
        title=str(table.title or ""),
        columns=tuple(str(column.header) for column in table.columns),
        rows=tuple(zip(*cells, strict=True)),
        note=note,
    )
