"""What every task's settings say of training: epochs, batches, rates, the rounds over which rates fall, the precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cloister.federated.training.learning import ALONE, Course, Learning
from cloister.federated.training.task_settings import SettingsReader
from cloister.inference.lowbit.training import has_bfloat16

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = ("auto", "fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a task trains in each round."""

    learning: Learning
    rounds: int
    """Over which the rates fall; 0 where they fall in each round by itself."""
    bfloat16: bool
    """Said, or not ruled out and faster on this machine: parties may differ in it."""

    def course(self, number: int) -> Course:
        """Of round ``number``. Raises UsageError for one that is not planned."""
        return Course(number, self.rounds) if self.rounds else ALONE


def read_plan(settings: SettingsReader, *, rate: int, head_rate: int | None) -> Plan:
    """Takes ``epochs``, ``batch``, ``rate-ppm``, ``head-rate-ppm``, ``decay-ppm``, ``warmup-ppm``, ``clip-ppm``, ``rounds``
    and ``precision``. Defaults of the rates are the task's; a task without a head has no rate of one."""
    precision = settings.choice("precision", "auto", PRECISIONS)
    low, high = 1, 1_000_000
    whole = settings.millionths("rate-ppm", rate, low=low, high=high)
    learning = Learning(
        epochs=settings.number("epochs", 1, low=1, high=1000),
        batch=settings.number("batch", 16, low=1, high=4096),
        rate=whole,
        head_rate=whole
        if head_rate is None
        else settings.millionths("head-rate-ppm", head_rate, low=low, high=high),
        decay=settings.millionths("decay-ppm", 10_000),
        warmup=settings.millionths("warmup-ppm", 100_000, high=999_999),
        clip=settings.millionths("clip-ppm", 1_000_000, low=1, high=1_000_000_000),
    )
    return Plan(
        learning=learning,
        rounds=settings.number("rounds", 0, low=0, high=10_000),
        bfloat16=precision == "bf16" or (precision == "auto" and has_bfloat16()),
    )
