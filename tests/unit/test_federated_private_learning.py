"""DP-SGD: each example's gradient whole and cut, noise on their sum, and nothing at all beyond the budget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from torch import Tensor, nn

from cloister.errors import CloisterError, FederationError, UsageError
from cloister.federated.privacy import Charge, Source, keyed_source, spent
from cloister.federated.tasks import ExamplePrivacy
from cloister.federated.training.corpus import TagSet
from cloister.federated.training.pieces import Piece
from cloister.federated.training.private import Privately, charge_of, learn_privately
from cloister.federated.training.tagger import Tagger, batch_of

TAGS = TagSet(("PLACE",))
Example = list[tuple[Piece, list[int]]]
"""A sentence: its pieces, and their words' tags."""


def privacy(**changes: Any) -> ExamplePrivacy:
    return ExamplePrivacy(**({"noise": 1.0, "clip": 1.0, "delta": 1e-5, "epsilon": 100.0} | changes))


def hardly(clip: float) -> ExamplePrivacy:
    """As good as no noise."""
    return privacy(noise=1e-9, clip=clip, epsilon=1e30)


def source(*context: bytes) -> Source:
    return keyed_source(bytes(32), *context)


def sentence(seed: int) -> Example:
    """Of one or two pieces of different lengths; the first word tells its tag."""
    draw = random.Random(seed)
    found: Example = []
    for start in range(0, draw.choice([4, 8]), 4):
        words = [draw.randrange(5, 30) for _ in range(draw.randrange(2, 7))]
        piece = Piece((1, *words, 2), tuple(range(1, len(words) + 1)), start)
        found.append((piece, [word % 3 for word in words]))
    return found


SENTENCES = [sentence(seed) for seed in range(7)]


def tagger(*, crf: bool = True) -> Tagger:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Tagger(BertModel(config, add_pooling_layer=False), TAGS, crf=crf, dropout=0.0)


def loss_with(model: Tagger) -> Callable[[Example], Tensor]:
    def loss(example: Example) -> Tensor:
        found: Tensor = model(batch_of([piece for piece, _ in example], [tags for _, tags in example]))
        return found

    return loss


class Tied(nn.Module):
    """One matrix as an embedding and as the last layer, a weight that no layer has, and one that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = nn.Embedding(6, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, words: list[int]) -> Tensor:
        said = self.embedding(torch.tensor(words[:-1])).mean(dim=0) * self.scale * self.frozen.mean()
        scores = nn.functional.linear(said, self.embedding.weight)
        return nn.functional.cross_entropy(scores[None], torch.tensor(words[-1:]))


WORDS = [[0, 1, 2], [3, 3, 1, 5], [2, 4], [5, 0]]


def vector(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().double() for one in model.parameters()])


def learned(
    model: nn.Module, examples: Sequence[Any], loss_of: Callable[[Any], Tensor], rules: ExamplePrivacy, **changes: Any
) -> Privately:  # fmt: skip
    settings: dict[str, Any] = {
        "batch": len(examples),
        "steps": 1,
        "before": (),
        "source": source(),
    }
    optimiser = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
    return learn_privately(model, examples, loss_of, optimiser, rules, **(settings | changes))


def gradients(model: nn.Module, losses: Sequence[Tensor]) -> list[Tensor]:
    """Of each loss, over all weights in one vector; what a loss knows nothing of is 0."""
    found = []
    for loss in losses:
        trained = [one for one in model.parameters() if one.requires_grad]
        parts = iter(torch.autograd.grad(loss, trained, allow_unused=True))
        rows = []
        for one in model.parameters():
            part = next(parts) if one.requires_grad else None
            rows.append(torch.zeros(one.numel()) if part is None else part.flatten())
        found.append(torch.cat(rows).double())
    return found


def moved(
    model: nn.Module,
    examples: Sequence[Any],
    loss_of: Callable[[Any], Tensor],
    rules: ExamplePrivacy,
    **changes: Any,
) -> Tensor:
    """The sum that one step's weights went by: the rate is 1, and the mean is of all examples."""
    before = vector(model)
    learned(model, examples, loss_of, rules, **changes)
    return (before - vector(model)) * len(examples)


@pytest.mark.parametrize("crf", [True, False])
@pytest.mark.parametrize("clip", [100, 0.5])
def test_each_sentence_counts_by_its_own_gradient_cut_over_all_weights(crf: bool, clip: float) -> None:
    model = tagger(crf=crf)
    apart = gradients(model, [loss_with(model)(one) for one in SENTENCES])
    norms = [float(one.norm()) for one in apart]
    expected = torch.stack([one * min(1, clip / norm) for one, norm in zip(apart, norms, strict=True)]).sum(0)
    assert min(norms) > 0.5
    names = [name for name, one in model.named_parameters() for _ in range(one.numel())]
    # Every tensor has a part in it: the CRF's scores, all embeddings, each layer.
    assert {name for name, value in zip(names, expected, strict=True) if value != 0} == set(names)
    found = moved(model, SENTENCES, loss_with(model), hardly(clip))
    assert float((found - expected).abs().max()) < 2e-5


def test_gradients_one_by_one_add_up_to_those_of_a_batch() -> None:
    model = tagger()
    rows = [part for one in SENTENCES for part in one]
    together = model(batch_of([piece for piece, _ in rows], [tags for _, tags in rows])) * len(rows)
    (expected,) = gradients(model, [together])
    found = moved(model, [[row] for row in rows], loss_with(model), hardly(100))
    assert float((found - expected).abs().max()) < 2e-5


def test_weights_that_are_shared_used_by_functions_or_by_nothing_are_right_too() -> None:
    model = Tied()
    apart = gradients(model, [model(one) for one in WORDS])
    clip = sorted(float(one.norm()) for one in apart)[1]
    expected = torch.stack([one * min(1.0, clip / float(one.norm())) for one in apart]).sum(0)
    assert float((moved(model, WORDS, model, hardly(clip)) - expected).abs().max()) < 1e-5
    assert model.frozen.tolist() == [1, 1, 1]


@pytest.mark.parametrize("weight", [1.0, 1e6])
@pytest.mark.parametrize("clip", [0.01, 1.0])
def test_one_example_moves_the_sum_by_the_clip_at_most(weight: float, clip: float) -> None:
    def sum_of(words: Sequence[list[int]]) -> Tensor:
        model = Tied()
        heavy = WORDS[0]
        return moved(model, words, lambda one: model(one) * (weight if one is heavy else 1.0), hardly(clip))

    apart = float((sum_of(WORDS) - sum_of(WORDS[1:])).norm())
    assert apart <= clip * (1 + 1e-4)
    if weight > 1:
        assert apart > 0.99 * clip


def assert_no_gradients(model: nn.Module) -> None:
    for one in model.parameters():
        assert one.grad is None
        assert not hasattr(one, "grad_sample")
        assert not hasattr(one, "summed_grad")


class Wide(nn.Module):
    """Weights without a gradient: what they move by is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(300, 100))

    def forward(self, _: Any) -> Tensor:
        return self.weights.sum() * 0.0


def test_noise_has_the_size_that_is_accounted_for() -> None:
    model = Wide()
    learned(model, range(20), model, privacy(noise=2.0, clip=3.0), batch=5)
    # 2 · 3 over the 5 that are expected, whoever came; of 30,000 numbers known to 0.4 %.
    assert float(vector(model).std()) == pytest.approx(1.2, rel=0.02)
    assert abs(float(vector(model).mean())) < 4 * 1.2 / math.sqrt(30_000)


def test_another_source_gives_other_noise_and_the_same_one_the_same() -> None:
    found = []
    for name in (b"a", b"a", b"b"):
        model = Tied()
        learned(model, WORDS, model, privacy(), source=source(name), steps=3, batch=2)
        found.append(vector(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Dropping(nn.Module):
    """Its gradient is the mask of its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(200))

    def forward(self, _: int) -> Tensor:
        return nn.functional.dropout(self.weights + 1, 0.5).sum()


def test_dropout_is_as_secret_as_the_noise_and_every_example_has_its_own() -> None:
    found = []
    for name, seed in ((b"a", 1), (b"a", 2), (b"b", 1)):
        model = Dropping()
        torch.manual_seed(seed)
        masks = moved(model, range(3), model, hardly(1000), source=source(name))
        assert {round(float(mask)) for mask in masks} == {0, 2, 4, 6}
        found.append(masks)
    # Whatever everybody knows of the process says nothing of it.
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_a_step_in_which_nobody_takes_part_looks_like_any_other() -> None:
    model = Wide()
    heard: list[tuple[int, int]] = []

    def loss_of(_: int) -> Tensor:
        raise AssertionError("nobody was drawn")

    # One in 10,000 is expected in a step, of 100: in these three steps there is none.
    found = learned(
        model, range(100), loss_of, privacy(delta=1e-3), batch=1, steps=3,
        source=lambda count: b"\xff" * (count // 2) + b"\xfe" * (count - count // 2),
        step=lambda done, steps: heard.append((done, steps)),
    )  # fmt: skip
    assert found.loss == 0
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert bool((model.weights != 0).all())
    assert_no_gradients(model)


def test_the_epsilon_is_what_the_accountant_says_with_all_that_was_before() -> None:
    model = Tied()
    before = (Charge(noise=1.5, rate=0.5, steps=4), Charge(noise=1.0, rate=0.25, steps=10))
    found = learned(model, WORDS, model, privacy(), batch=1, steps=6, before=before)
    assert found.charge == Charge(noise=1.0, rate=0.25, steps=6)
    accountant = RDPAccountant()
    accountant.history = [(1.5, 0.5, 4), (1.0, 0.25, 16)]
    assert found.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert found.epsilon == spent([*before, found.charge], delta=1e-5)
    assert found.epsilon > spent(before, delta=1e-5)


def test_rounds_go_on_until_the_budget_would_be_exceeded_and_then_nothing_is_learned() -> None:
    model, rules = Tied(), privacy(epsilon=12.0)
    ledger: list[Charge] = []
    calls: list[int] = []

    def loss_of(one: list[int]) -> Tensor:
        calls.append(1)
        found: Tensor = model(one)
        return found

    def one_round() -> float:
        found = learned(
            model, WORDS, loss_of, rules, batch=2, steps=4, before=ledger, source=source(bytes([len(ledger)]))
        )
        ledger.append(found.charge)
        return found.epsilon

    each = charge_of(rules, examples=4, batch=2, steps=4)
    told = []
    while spent([*ledger, each], delta=rules.delta) <= 12:
        told.append(one_round())
    assert len(told) > 1
    assert told == sorted(set(told))
    before, learned_from = vector(model), len(calls)
    with pytest.raises(FederationError, match="the privacy budget is spent: this round would come to 1"):
        one_round()
    assert torch.equal(vector(model), before)
    assert len(calls) == learned_from > 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"noise": 0.0}, id="no noise"),
        pytest.param({"noise": -1.0}, id="noise below none"),
        pytest.param({"noise": math.nan}, id="noise that is no number"),
        pytest.param({"clip": 0.0}, id="nothing left"),
        pytest.param({"clip": math.inf}, id="nothing cut"),
        pytest.param({"epsilon": 0.0}, id="no budget"),
        pytest.param({"epsilon": math.inf}, id="a budget without end"),
    ],
)
def test_training_that_would_hide_nothing_is_refused(changes: dict[str, float]) -> None:
    model = Tied()
    before = vector(model)
    with pytest.raises(UsageError):
        learned(model, WORDS, model, privacy(**changes))
    assert torch.equal(vector(model), before)


def test_a_delta_that_would_let_an_example_show_whole_is_refused() -> None:
    model = Wide()
    with pytest.raises(FederationError, match="a delta of 1/100 hides nothing among 100 examples"):
        learned(model, range(100), model, privacy(delta=0.01))


def test_layers_that_keep_statistics_of_what_they_see_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(UsageError, match="BatchNorm1d keeps statistics"):
        learned(model, range(4), lambda _: model(torch.ones(2, 2)).sum(), privacy())


def test_an_optimiser_of_other_weights_is_refused() -> None:
    model = Tied()
    optimiser = torch.optim.SGD([model.scale], lr=1.0)
    with pytest.raises(UsageError, match="other weights"):
        learn_privately(
            model, WORDS, model, optimiser, privacy(), batch=2, steps=1, before=(), source=source()
        )


def test_a_gradient_that_is_no_number_ends_the_round_and_leaves_no_gradients() -> None:
    model = Tied()
    with pytest.raises(CloisterError, match="no number"):
        learned(model, WORDS, lambda one: model(one) * (math.nan if one is WORDS[2] else 1.0), privacy())
    left = {
        name for one in model.parameters() for name in ("grad_sample", "summed_grad") if hasattr(one, name)
    }
    assert not left
    assert all(one.grad is None for one in model.parameters())


def test_fedprox_pulls_towards_the_beginning_behind_the_noise() -> None:
    """Where losses say nothing, a step goes by noise n, and the next by another and back by μ of the rate."""
    ends = []
    for strength in (0.0, 0.25):
        model = Wide()
        places = []
        learned(
            model, range(4), model, privacy(), steps=2, proximal=strength,
            step=lambda _done, _steps, model=model, places=places: places.append(vector(model)),
        )  # fmt: skip
        ends.append(places)
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.allclose(ends[1][1], ends[0][1] - 0.25 * ends[0][0], atol=1e-6)


def test_a_tagger_learns_under_noise_that_its_budget_allows() -> None:
    model = tagger()
    examples = [sentence(seed) for seed in range(80)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / 20)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(loss_with(model)(one)) for one in examples) / len(examples)

    before = loss()
    found = learn_privately(
        model, examples, loss_with(model), optimiser, privacy(noise=0.6, delta=1e-3, epsilon=40.0), batch=20,
        steps=15, before=(), source=source(), schedule=schedule,
    )  # fmt: skip
    assert loss() < 0.8 * before
    assert loss() < found.loss < before
    assert 3 < found.epsilon < 40
    assert schedule.last_epoch == 15


@pytest.mark.parametrize(("examples", "batch", "steps"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nothing_is_no_training(examples: int, batch: int, steps: int) -> None:
    with pytest.raises(UsageError):
        charge_of(privacy(), examples=examples, batch=batch, steps=steps)


def test_a_batch_of_more_than_all_is_all() -> None:
    assert charge_of(privacy(), examples=4, batch=9, steps=2) == Charge(noise=1.0, rate=1.0, steps=2)
