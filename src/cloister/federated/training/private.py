"""DP-SGD (Abadi et al. 2016): a party learns so that no single example of its data shows in what it sends.

In each step every example takes part with one chance, by itself; its gradient, over all trained weights together, is cut
to a norm; noise is added to the sum; what follows (AdamW, FedProx's term) sees nothing else. Refused before anything is
learned: a round that would exceed the budget, a model whose layers keep statistics of what they see.

Clipping, sum and scale are Opacus'. Two things are not. Gradients are computed one example at a time, by the very code
that trains without privacy: Opacus' hooks know no CRF, no embedding that examples share, no example of several rows. And
noise and sampling come from a secure source: Opacus' secure mode asks for torchcsprng, which our Python cannot have.
Dropout is seeded from there too, for each example anew: out of one public stream, an example more would be other masks for
all that come after it, and their gradients would change with it.

The guarantee is of the weights. Metrics of the training data (``loss``) have no noise on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from opacus.optimizers.optimizer import DPOptimizer
from torch import Tensor, nn

from cloister.encoding import labelled_hash
from cloister.errors import CloisterError, FederationError, UsageError
from cloister.federated.privacy import Charge, Source, chosen, normal, require_within, spent
from cloister.federated.tasks import ExamplePrivacy, Step
from cloister.federated.updates import Arrays, encode_arrays

E = TypeVar("E")
_LABEL: Final = "cloister/federation-private-round/v1"
_LABEL_DATA: Final = "cloister/federation-private-data/v1"


@dataclass(frozen=True, slots=True)
class Privately:
    """What a private training came to."""

    loss: float
    """The mean over the examples that were drawn, before each step; 0 if none was."""
    charge: Charge
    """What this training spent, to be kept with what was spent before."""
    epsilon: float
    """With all before."""


def charge_of(privacy: ExamplePrivacy, *, examples: int, batch: int, steps: int) -> Charge:
    """What so many steps spend. ``batch`` is how many examples take part in the mean: beyond all of them it is all."""
    if examples < 1 or batch < 1 or steps < 1:
        raise UsageError("there is an example, a batch and a step at least")
    return Charge(noise=privacy.noise, rate=min(1.0, batch / examples), steps=steps)


def digest_of_outcome(
    arrays: Arrays, data: Iterable[bytes], *, number: int, seed: int, bfloat16: bool
) -> bytes:
    """Over all that a round's outcome depends on, beside noise and federation (:data:`~cloister.federated.tasks.Spend`).

    Also over how this machine computes: two roundings of one sum, under one noise, would tell their difference.
    """
    machine = (
        f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} {bfloat16}"
    )
    place = f"{number} {seed} {machine}".encode()
    return labelled_hash(_LABEL, place, labelled_hash(_LABEL_DATA, *data), encode_arrays(arrays))


def learn_privately(
    model: nn.Module,
    examples: Sequence[E],
    loss_of: Callable[[E], Tensor],
    optimiser: torch.optim.Optimizer,
    privacy: ExamplePrivacy,
    *,
    batch: int,
    steps: int,
    before: Sequence[Charge],
    source: Source,
    proximal: float = 0.0,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    step: Step = lambda done, steps: None,
) -> Privately:
    """Train ``model``; ``loss_of`` one example is a scalar. An element of ``examples`` is what is hidden: a whole sentence,
    and not a piece of one. ``source`` is used by nothing else; ``before`` is all that this party has spent on its data.

    Raises FederationError where the budget does not suffice, and then nothing has changed; CloisterError where a gradient
    is no number.
    """
    _check(model, privacy, len(examples))
    charge = charge_of(privacy, examples=len(examples), batch=batch, steps=steps)
    epsilon = spent([*before, charge], delta=privacy.delta)
    require_within(epsilon, privacy.epsilon, what="this round")
    trained = [one for one in model.parameters() if one.requires_grad]
    private = _Private(optimiser, privacy, expected=charge.rate * len(examples), source=source)
    if {id(one) for one in private.params} != {id(one) for one in trained}:
        raise UsageError("the optimiser has other weights than the model trains")
    pull = _Pull(trained, proximal)
    private.attach_step_hook(lambda _: pull.add())
    model.train()
    total, drawn = 0.0, 0
    try:
        for done in range(1, steps + 1):
            for place in chosen(source, len(examples), charge.rate):
                torch.manual_seed(int.from_bytes(source(8), "little"))
                total += _add_gradient(private, loss_of(examples[place]))
                drawn += 1
            _step_with_noise(private)
            if schedule is not None:
                schedule.step()
            step(done, steps)
    finally:
        # Gradients of single examples are nobody's afterwards.
        for one in trained:
            one.grad = None
            for name in ("grad_sample", "summed_grad"):
                if hasattr(one, name):
                    delattr(one, name)
    return Privately(total / drawn if drawn else 0.0, charge, epsilon)


class _Private(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise of ours."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, privacy: ExamplePrivacy, *, expected: float, source: Source
    ) -> None:
        super().__init__(
            optimiser,
            noise_multiplier=privacy.noise,
            max_grad_norm=privacy.clip,
            expected_batch_size=expected,
        )
        self._source = source

    def add_noise(self) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm
        for one in self.params:
            # What is cut by a norm that is no number is none either.
            if not torch.isfinite(one.summed_grad).all():
                raise CloisterError("a gradient is no number any more", todo="lower the rates")
        for one in self.params:
            noise = torch.from_numpy(normal(self._source, one.numel()) * deviation).view_as(one)
            # The sum is in 64 bits and rounded once (see normal).
            one.grad = (one.summed_grad.double() + noise.to(one.device)).to(one.dtype)


class _Pull:
    """FedProx's term as its gradient, added behind the noise: it knows nothing of data."""

    def __init__(self, trained: Sequence[nn.Parameter], strength: float) -> None:
        self._strength = strength
        self._began = [(one, one.detach().clone()) for one in trained] if strength else []

    def add(self) -> None:
        for one, began in self._began:
            pull = self._strength * (one.detach() - began)
            one.grad = pull if one.grad is None else one.grad + pull


def _add_gradient(private: Any, loss: Any) -> float:
    """Add one example's gradient, cut, to the step's sum. The answer is its loss."""
    private.original_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for one in private.params:
        one.grad_sample = (torch.zeros_like(one) if one.grad is None else one.grad)[None]
    private.signal_skip_step(do_skip=True)
    private.step()
    private.zero_grad(set_to_none=True)
    return float(loss.detach())


def _step_with_noise(private: Any) -> None:
    """End a step, also one in which nobody took part: that there was none must not show."""
    for one in private.params:
        one.grad_sample = one.new_zeros((0, *one.shape))
    private.signal_skip_step(do_skip=False)
    private.step()
    private.zero_grad(set_to_none=True)


def _check(model: nn.Module, privacy: ExamplePrivacy, examples: int) -> None:
    numbers = (privacy.noise, privacy.clip, privacy.epsilon)
    if not all(0 < number < math.inf for number in numbers):
        raise UsageError("noise, clip and budget are over 0")
    # To show one example of each party whole would be private then.
    if privacy.delta * examples >= 1:
        raise FederationError(
            f"a delta of 1/{1 / privacy.delta:.0f} hides nothing among {examples} examples",
            todo="agree on a smaller one",
        )
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise UsageError(
                f"{type(module).__name__} keeps statistics of what it sees, without noise",
                todo="use layers that do not, as LayerNorm",
            )
