"""A federation whose aggregator sees no update: real processes, two rounds, and the very model that the sum comes to.

What each round has to come to is computed beside it, in this process alone: every party's training, its vector in the clear,
and their sum. So the run's models are told bit by bit, and one can look for a party's update where it must not be.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from msgspec import structs

from cloister.federated.exchange import Request
from cloister.federated.identity import Identity
from cloister.federated.opening import Places
from cloister.federated.progress import Ended, RoundDone
from cloister.federated.rounds import digest_of
from cloister.federated.secure.memory import memory_name
from cloister.federated.secure.rounds import moved
from cloister.federated.secure.sum import Mean
from cloister.federated.secure.terms import Terms, least_threshold
from cloister.federated.secure.vectors import mean, weighted
from cloister.federated.tasks import Opening, find_task
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays
from cloister.federated.workload import Workload
from cloister.inference.model_files import ModelFiles
from federation import AGGREGATOR, Federation
from federation_site import (
    PARTIES,
    Watch,
    agreed,
    children,
    commands_here,
    data_of,
    in_memory_of,
    site,
    wait_for,
)

ROUNDS = 2
pytestmark = pytest.mark.timeout(900)


@dataclass
class Expected:
    """A round, computed in the clear."""

    model: str
    updates: list[bytes]
    """A part of each party's difference to the model that the round began with."""


@dataclass
class Lived:
    """What was seen of the run."""

    federation: Federation
    digest: str
    rounds: list[RoundDone]
    ended: Ended | None
    expected: list[Expected]
    at_aggregator: list[bool]
    """Whether a part of an update was found there, after round 1 and at the end."""
    at_workload: bool
    """Whether a party's own, of the last round, was found at its workload."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    federation = site(
        tmp_path_factory.mktemp("secure"), rounds=ROUNDS, deadline=300, aggregation={"secure": True},
        metrics=("f1", "loss"),
    )  # fmt: skip
    with commands_here():
        digest = federation.prepare()
    watch = Watch(federation)
    with ExitStack() as undo:
        undo.callback(federation.stop)
        undo.callback(watch.close)
        with commands_here():
            federation.start()
        wait_for(watch.rounds, seconds=300, what="the first round")
        expected = computed(federation, watch.begun()[0].run)
        aggregator = federation.services[AGGREGATOR].process.pid
        found = [anywhere([aggregator, *children(aggregator)], expected[0].updates)]
        ended = wait_for(watch.ended, seconds=300, what="the end")
        found.append(anywhere([aggregator, *children(aggregator)], expected[1].updates))
        own = federation.services["north workload"].process.pid
        kept = anywhere([own], expected[1].updates[:1])
        for party in federation.parties.values():
            wait_for((party.out / "provenance.json").exists, seconds=240, what="the model")
        yield Lived(federation, digest, watch.rounds(), ended, expected, found, kept)


def test_the_run_comes_to_the_sum_of_what_every_party_learned_bit_by_bit(lived: Lived) -> None:
    assert lived.ended is not None
    assert lived.ended.finished
    assert [one.model for one in lived.rounds] == [one.model for one in lived.expected]
    assert lived.ended.model == lived.expected[-1].model


def test_no_party_s_update_is_in_the_memory_of_the_aggregator_and_its_processes(lived: Lived) -> None:
    assert lived.at_aggregator == [False, False]
    assert lived.at_workload  # where one looks the same way, and it has to be


def test_the_facts_tell_neither_how_far_an_update_went_nor_of_how_many_examples_it_is(lived: Lived) -> None:
    for done in lived.rounds:
        assert done.shares.keys() == set(PARTIES)
        assert not done.refused
        for share in done.shares.values():
            assert (share.norm, share.examples) == (None, 0)
            assert share.metrics.keys() == {"loss"}
            assert share.scores.keys() == {"f1", "loss"}
    assert lived.rounds[1].scores["loss"] < lived.rounds[0].scores["loss"]


def test_each_party_remembers_the_rounds_sealed_in_its_own_folder(lived: Lived) -> None:
    for name, party in lived.federation.parties.items():
        kept = (party.root / "state" / memory_name(lived.digest, name)).read_bytes()
        assert not [word for word in ("terms", "opened", "threshold") if word.encode() in kept]


def test_every_receiver_has_the_model_with_its_provenance(lived: Lived) -> None:
    for party in lived.federation.parties.values():
        assert (party.out / "model.sealed" / "index.json").exists()


def anywhere(processes: list[int], needles: list[bytes]) -> bool:
    return any(in_memory_of(process, needle) for process in processes for needle in needles)


def computed(federation: Federation, run: str) -> list[Expected]:
    """Every round, by the parties' own code, with the sum of their vectors taken in the clear."""
    found, threads, rounds = agreed(federation), torch.get_num_threads(), list[Expected]()
    how = structs.replace(found.federation.aggregation, secure=False)
    shown = structs.replace(found.federation, aggregation=how)
    torch.set_num_threads(1)  # as each workload has: sums in another order are others
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, threads)
        parties = {}
        for name in PARTIES:
            opened = undo.enter_context(ModelFiles.of_path(federation.model))
            one = Workload(Identity.generate(), Places(Path(os.devnull), Path(os.devnull), Path(os.devnull)))
            files = data_of(name)
            one.training = find_task(shown.task.plugin)(
                Opening(opened, shown.task.settings, lambda file, files=files: io.BytesIO(files[file]))  # type: ignore[misc]
            )
            one.leased = math.inf
            one.agreed = cast("Any", SimpleNamespace(federation=shown))
            one.order = cast("Any", SimpleNamespace(party=name))
            parties[name] = one
        first = parties[PARTIES[0]].training
        assert first is not None
        model: Arrays = first.arrays()
        for number in range(1, ROUNDS + 1):
            blob = encode_arrays(model)
            terms = Terms(
                run=run, number=number, model=digest_of(blob), threshold=least_threshold(len(parties)),
                parties={name: one.identity.key.public_key() for name, one in parties.items()},
                largest_ppm=how.largest_ppm,
                shapes={name: array.shape for name, array in model.items()},
            )  # fmt: skip
            total, parts = np.zeros(1 + terms.values, "<u8"), []
            for one in parties.values():
                answer = one.work(Request("train", run, number, digest_of(blob), blob))
                update = decode_arrays(answer.content, what="an update", limit=2 * len(blob))
                difference = {
                    name: (update[name].astype(np.float64) - before.astype(np.float64)).astype(np.float32)
                    for name, before in model.items()
                }
                total += weighted(difference, answer.examples, terms)
                parts.append(difference["linear.weight"].tobytes()[:64])
            arrays, examples = mean(total, len(parties), terms)
            model = moved(model, Mean(arrays, examples, frozenset(parties)))
            rounds.append(Expected(digest_of(encode_arrays(model)), parts))
    return rounds
