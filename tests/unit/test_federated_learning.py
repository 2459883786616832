"""A small encoder learns to tag: what it learns, that it is the same each time, and what long sentences come to."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, UsageError
from cloister.federated.training.corpus import Sentence, TagSet
from cloister.federated.training.learning import ALONE, Course, Learning, Reading, learn, learn_parts, predict
from cloister.federated.training.pieces import encoder_of
from cloister.federated.training.scores import entity_scores
from cloister.federated.training.tagger import OUTSIDE_BIAS, OUTSIDE_WEIGHT, Tagger, batch_of

TAGS = TagSet(("PLACE",))
WORDS = ["in", "the", "old", "city", "of", "new", "york", "rome", "he", "went", "to", "."]


def sentence(draw: random.Random, length: int = 10) -> Sentence:
    """A place is what follows ``in`` or ``to``: two words behind the first, one behind the other."""
    words: list[str] = []
    tags: list[str] = []
    while len(words) < length:
        word = draw.choice(WORDS)
        words.append(word)
        tags.append("O")
        for place in range({"in": 2, "to": 1}.get(word, 0)):
            words.append(draw.choice(["york", "rome", "city", "new"]))
            tags.append("I-PLACE" if place else "B-PLACE")
    return Sentence(tuple(words), tuple(tags))


def corpus(count: int, seed: int, length: int = 10) -> list[Sentence]:
    draw = random.Random(seed)
    return [sentence(draw, length) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import BertTokenizerFast

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "y", "##ork"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"))


@pytest.fixture(scope="module")
def reading(tokenizer: Any) -> Reading:
    return Reading(*encoder_of(tokenizer), TAGS, length=64, stride=16)


def tagger(*, crf: bool, layers: int = 2, positions: int = 64) -> Tagger:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=positions,
    )  # fmt: skip
    return Tagger(BertModel(config, add_pooling_layer=False), TAGS, crf=crf)


LEARNING = Learning(epochs=12, batch=16, rate=3e-3, head_rate=1e-2)


@pytest.mark.parametrize("crf", [True, False])
def test_what_follows_a_word_is_learned_and_told_of_sentences_never_seen(crf: bool, reading: Reading) -> None:
    model = tagger(crf=crf)
    before = predict(model, corpus(60, 2), reading).scores
    heard: list[tuple[int, int]] = []
    loss = learn(
        model, corpus(600, 1), reading, LEARNING, seed=5, step=lambda done, steps: heard.append((done, steps))
    )
    after = predict(model, corpus(60, 2), reading).scores
    assert heard == [(done, 456) for done in range(1, 457)]
    assert 0 < loss < 1
    assert before.f1 < 0.2
    # Without a CRF words that are nothing weigh a hundredth: entities are found, and too many.
    assert after.f1 > (0.95 if crf else 0.4)
    assert after.recall > 0.7


def test_the_same_seed_gives_the_same_weights(reading: Reading) -> None:
    found = []
    for seed in (5, 5, 6):
        model = tagger(crf=True)
        learn(model, corpus(64, 1), reading, Learning(epochs=1, rate=1e-3), seed=seed)
        found.append(torch.cat([one.flatten() for one in model.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_one_round_alone_rises_and_falls_as_ever() -> None:
    rate = ALONE.rate(20, 0.1)
    falling = [(20 - step) / 18 for step in range(2, 21)]
    assert [rate(step) for step in range(21)] == pytest.approx([0.5, 1.0, *falling])


@given(
    rounds=st.integers(1, 9), steps=st.integers(1, 60), warmup=st.floats(0, 0.5), data=st.data()
)  # fmt: skip
def test_rates_never_exceed_the_full_rate_and_end_at_nothing_with_the_last_round(
    rounds: int, steps: int, warmup: float, data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, rounds))
    rates = [Course(number, rounds).rate(steps, warmup)(step) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates[:-1]) > 0
    if number < rounds:
        following = [Course(number + 1, rounds).rate(steps, warmup)(step) for step in range(steps + 1)]
        assert max(following) <= max(rates)
        # Behind its rise a round begins where the one before ended.
        assert following[0] <= rates[-1] + 1e-9
    else:
        assert rates[-1] == 0


@pytest.mark.parametrize(("number", "rounds"), [(0, 1), (2, 1), (1, 0)])
def test_there_is_no_round_outside_of_all(number: int, rounds: int) -> None:
    with pytest.raises(UsageError, match=f"no round {number} of {rounds}"):
        Course(number, rounds)


def test_products_in_bfloat16_learn_the_same_and_leave_weights_in_32_bits(reading: Reading) -> None:
    parts = [part for one in corpus(200, 1) for part in reading.of(one)]
    found = {}
    for short in (True, False):
        model = tagger(crf=True)
        loss = learn_parts(model, parts, replace(LEARNING, epochs=6), seed=5, bfloat16=short)
        assert {one.dtype for one in model.parameters()} == {torch.float32}
        found[short] = loss, predict(model, corpus(60, 2), reading, bfloat16=short).scores.f1
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], abs=0.1)


def test_a_long_sentence_is_tagged_as_if_it_were_read_at_once_where_words_depend_on_nothing_else(
    reading: Reading,
) -> None:
    model = tagger(crf=True, layers=0, positions=512)
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.weight.zero_()
        model.linear.weight.mul_(100)
        model.linear.bias.zero_()
    (long,) = corpus(1, 9, length=400)
    sentences = [*corpus(3, 7), long, *corpus(3, 8)]
    at_once = predict(model, sentences, replace(reading, length=500, stride=128))
    in_pieces = predict(model, sentences, reading)
    assert in_pieces == at_once
    assert [len(tags) for tags in in_pieces.tags] == [len(one.words) for one in sentences]
    assert len(set(in_pieces.tags[3])) == 3


def test_sub_words_and_padding_change_nothing(reading: Reading) -> None:
    model = tagger(crf=True).eval()
    short, other = corpus(1, 3, length=4)[0], corpus(1, 4, length=20)[0]
    (piece, tags), (longer, more) = reading.of(short)[0], reading.of(other)[0]
    with torch.no_grad():
        alone = model.emissions(batch_of([piece], [tags]))[0]
        beside = model.emissions(batch_of([piece, longer], [tags, more]))[0, : len(piece.heads)]
        assert torch.allclose(alone, beside, atol=1e-5)
        both = model(batch_of([piece, longer], [tags, more]))
        each = [model(batch_of([one], [said])) for one, said in ((piece, tags), (longer, more))]
    assert float(both) == pytest.approx(float(sum(each)) / 2, rel=1e-4)


def test_words_that_are_nothing_do_not_drown_the_others() -> None:
    model = tagger(crf=False)
    assert model.linear.bias.tolist() == [OUTSIDE_BIAS, 0, 0]
    assert model.get_buffer("weights").tolist() == pytest.approx([OUTSIDE_WEIGHT, 1, 1])


def test_a_loss_that_is_no_number_ends_the_round(reading: Reading) -> None:
    model = tagger(crf=True)
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(CloisterError, match="no number"):
        learn(model, corpus(16, 1), reading, LEARNING, seed=1)


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"warmup": 1.0}, {"clip": 0.0}]
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Learning(**settings)


def test_entities_count_whole() -> None:
    expected = [["B-PLACE", "I-PLACE", "O", "B-PLACE"]]
    found = [["B-PLACE", "O", "O", "B-PLACE"]]
    scores = entity_scores(expected, found)
    assert (scores.precision, scores.recall, scores.f1, scores.entities) == (0.5, 0.5, 0.5, 2)
    with pytest.raises(UsageError):
        entity_scores(expected, [["O"]])
