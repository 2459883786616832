"""What is trained: tasks by entry point (group ``cloister.tasks``), each a model, its data and how both make an update.

A task is opened with a model that is already in the clear, in memory, and with a way to read its own party's data. The
aggregator opens it too, without data: for what training begins with, and to write the final model. A plugin is enabled by
the name in the federation that every party signed, never by a dotted name, and never replaces another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, cast

from cloister.errors import FederationError, UsageError

if TYPE_CHECKING:
    from cloister.federated.privacy import Charge, Source
    from cloister.federated.updates import Arrays
    from cloister.inference.model_files import ModelFiles

GROUP: Final = "cloister.tasks"
Step = Callable[[int, int], None]
"""Hears of progress: steps that are done, and all."""
Settings = Mapping[str, int | str | tuple[str, ...]]
"""As the federation has them (:class:`~cloister.federated.federation.Task`)."""


def no_data(name: str) -> BinaryIO:
    """Who has none, as the aggregator."""
    raise UsageError(f"there is no {name[:80]} here: a task is opened with data by a party alone")


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """DP-SGD: gradients of single examples are cut to ``clip``, and noise of ``noise`` times that is added to their sum."""

    noise: float
    clip: float
    delta: float
    epsilon: float
    """What all rounds together may spend: training raises rather than exceed it."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What a private round begins with."""

    before: tuple[Charge, ...]
    """All that was spent on the party's data, but for this round."""
    source: Source = field(repr=False)
    """Of the round's noise and sampling."""


Spend = Callable[[bytes, "Charge"], Spending]
"""Writes down for good what a round will spend, before anything is learned in it.

The bytes are a digest of all that its outcome depends on beside the noise: a round that is computed again spends nothing
more, and has the same noise. Raises FederationError where the budget does not suffice; then nothing is written down.
"""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a task is opened with."""

    model: ModelFiles
    """A Hugging Face directory in the clear, in memory."""
    settings: Settings
    read: Callable[[str], BinaryIO] = field(default=no_data, repr=False)
    """A file of the party's data by its name, in the clear. The caller closes it."""
    proximal: float = 0.0
    """FedProx's μ; 0 without."""
    privacy: ExamplePrivacy | None = None
    seed: int = 0
    """Of what the model lacks (a new head): the same for every party, so all begin with one model."""
    spend: Spend | None = field(default=None, repr=False)
    """Where a round's privacy is accounted for; who has ``privacy`` does not train without."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a party's round gave."""

    arrays: Arrays
    examples: int
    """That were learned from: the weight of the update."""
    metrics: Mapping[str, float]
    """Of :data:`~cloister.federated.federation.METRICS`; what the federation does not list never leaves the party."""


@dataclass(frozen=True, slots=True)
class Scored:
    """How good a model is on a party's held-out data."""

    examples: int
    metrics: Mapping[str, float]


class Training(Protocol):
    """An open task."""

    def arrays(self) -> Arrays:
        """What travels, as it is now."""

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        """Round ``number`` (from 1) from ``arrays`` on. Deterministic: the same for the same arrays, data and seed.

        With the privacy of examples: raises FederationError rather than exceed the budget, and then has learned nothing.
        """

    def score(self, arrays: Arrays) -> Scored:
        """Of the held-out part of the party's data."""

    def save(self, arrays: Arrays, folder: Path) -> None:
        """Write the model with ``arrays`` into the empty ``folder``, as its kind of model is opened elsewhere."""


Plugin = Callable[[Opening], Training]
"""Opens the task. Raises UsageError for settings that it does not know."""


def find_task(name: str) -> Plugin:
    """The installed plugin of this name. Raises :class:`~cloister.errors.FederationError`."""
    found: list[EntryPoint] = [one for one in entry_points(group=GROUP) if one.name == name]
    if len(found) != 1:
        raise FederationError(
            f"{'no' if not found else 'more than one'} task is called {name[:80]!r} here",
            todo="install the package that brings it, once"
            if not found
            else "uninstall all but one of the packages that bring it",
        )
    return cast("Plugin", found[0].load())
