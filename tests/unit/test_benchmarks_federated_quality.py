"""The page of federated quality, out of scores that are there and scores that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.federated_trials import Score, Trial, common_characters, in_characters, keep, kept
from benchmarks.report import markdown
from benchmarks.sections.federated_quality import CENTRAL, NCBI, UNER, result, trials_of

from cloister.federated.training.corpus import Sentence


def score(f1: float) -> Score:
    return Score(f1, f1, f1, 60.0)


def test_a_federation_is_compared_seed_by_seed_with_all_data_in_one_place() -> None:
    found = {
        Trial(1): score(80.0),
        Trial(2): score(90.0),
        Trial(1, division="iid"): score(79.0),
        Trial(2, division="iid"): score(87.0),
    }
    page = result([NCBI], {NCBI.name: found})
    federated = next(row for row in page.tables[0].rows if row[0] == "federated, IID")
    assert federated[1] == "83.0 ± 5.7"
    assert federated[4] == "-2.0 ± 1.4"
    assert page.aims[0].found == pytest.approx(-2.0)
    assert page.aims[0].reached


def test_a_seed_that_one_side_lacks_is_compared_with_no_other_seed() -> None:
    found = {Trial(1): score(80.0), Trial(2): score(90.0), Trial(2, division="iid"): score(89.5)}
    assert result([NCBI], {NCBI.name: found}).aims[0].found == pytest.approx(-0.5)


def test_the_best_party_counts_only_once_every_party_was_alone() -> None:
    alone = {Trial(1, division="iid", party=party): score(60.0 + party) for party in range(2)}
    found = {Trial(1): score(80.0), Trial(1, division="iid"): score(79.0), **alone}
    assert result([NCBI], {NCBI.name: found}).aims[1].found is None
    found[Trial(1, division="iid", party=2)] = score(70.0)
    assert result([NCBI], {NCBI.name: found}).aims[1].found == pytest.approx(9.0)


def test_a_page_without_any_score_says_that_nothing_was_measured() -> None:
    page = result([NCBI, UNER], {NCBI.name: {}, UNER.name: {}})
    assert all(aim.found is None and not aim.reached for aim in page.aims)
    assert CENTRAL in markdown(page)


def test_no_training_is_listed_twice() -> None:
    trials = list(trials_of(UNER, range(1, 4)))
    assert len(trials) == len(set(trials))


def test_what_was_computed_in_another_way_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    keep(NCBI, Trial(1, division="iid"), score(79.0), file)
    assert kept(NCBI, file) == {Trial(1, division="iid"): score(79.0)}
    assert kept(replace(NCBI, epochs=NCBI.epochs + 1), file) == {}


def test_an_entity_in_characters_is_one_entity_and_ascii_words_stay_whole() -> None:
    sentence = Sentence(("北京", "NBA", "人"), ("B-LOC", "I-LOC", "O"))
    assert in_characters(sentence) == Sentence(("北", "京", "NBA", "人"), ("B-LOC", "I-LOC", "I-LOC", "O"))


def test_the_characters_are_a_list_that_no_data_decides() -> None:
    found = common_characters()
    assert len(found) == len(set(found))
    assert sum("\u4e00" <= one <= "\u9fff" for one in found) == 6763
