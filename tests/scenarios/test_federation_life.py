"""A federation whose parts are killed: the run goes on from its last round, to the very model that nothing disturbed.

One run of three parties is followed through its aggregator's end, an older checkpoint that the host puts in the place of the
newest, and the end of a party's workload in a round. What it has to come to is computed beside it, in this process alone.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cloister.federated.checkpoint import NAME
from cloister.federated.exchange import NOT_READY, Reply, Request
from cloister.federated.identity import Identity
from cloister.federated.opening import Places
from cloister.federated.progress import Begun, Ended, PartyState, RoundDone
from cloister.federated.rounds import Kept, Rounds, digest_of
from cloister.federated.tasks import Opening, find_task
from cloister.federated.updates import encode_arrays
from cloister.federated.workload import Workload
from cloister.inference.model_files import ModelFiles
from deployment import CommandFailedError
from federation import AGGREGATOR, Federation
from federation_site import PARTIES, Watch, agreed, alive, commands_here, data_of, killed, site, wait_for

ROUNDS, DEADLINE = 4, 120
KILLED_AFTER = 3
"""Rounds that the first aggregator lives to see."""
pytestmark = pytest.mark.timeout(900)


@dataclass
class Lived:
    """What was seen of the run."""

    federation: Federation
    second: CommandFailedError
    """Of an aggregator that was started beside the first, on the same folder."""
    left: list[int]
    """Processes that outlived the aggregator that started them."""
    left_at_party: list[int]
    restored: str
    """What the aggregator logged that found an older checkpoint."""
    begun: list[Begun]
    rounds: list[RoundDone]
    gone: PartyState
    """What was told of the party whose workload was killed."""
    ended: Ended | None
    written: bool


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    federation = site(
        tmp_path_factory.mktemp("life"), rounds=ROUNDS, deadline=DEADLINE, receivers=PARTIES[:1]
    )
    with commands_here():
        federation.prepare()
    watch, state = Watch(federation), federation.aggregator.root / "state"
    older, newest = federation.root / "older", federation.root / "newest"
    with ExitStack() as undo:
        undo.callback(federation.stop)
        undo.callback(watch.close)
        first = federation.start_aggregator()
        port = first.url.rpartition(":")[2]
        with pytest.raises(CommandFailedError) as second:
            federation.start_aggregator()
        for name in PARTIES:
            federation.start_workload(name)
            federation.start_agent(name)
        with commands_here():
            for name in PARTIES:
                federation.join(name)
        wait_for(watch.rounds, seconds=240, what="the first round")
        shutil.copyfile(state / NAME, older)
        # Now at the latest agents have seen a round that the older checkpoint does not have.
        wait_for(lambda: len(watch.rounds()) >= KILLED_AFTER, seconds=240, what="three rounds")
        left = undo.enter_context(killed(first))
        watch.close()
        (state / NAME).rename(newest)
        shutil.copyfile(older, state / NAME)
        log = federation.start_aggregator(port=port).log
        wait_for(lambda: "the run did not begin" in log.read_text(), seconds=120, what="a refusal")
        restored = log.read_text()
        left = outlived(left)
        federation.services.pop(AGGREGATOR).stop()
        newest.rename(state / NAME)
        federation.start_aggregator(port=port)
        wait_for(lambda: len(watch.begun()) > 1, seconds=240, what="the run goes on")
        left_at_party = undo.enter_context(killed(federation.services.pop("west workload")))
        ended = wait_for(watch.ended, seconds=240, what="the end")
        receiver = federation.parties["north"].out
        written = wait_for((receiver / "provenance.json").exists, seconds=240, what="the model")
        yield Lived(
            federation, second.value, left, outlived(left_at_party), restored, watch.begun(),
            watch.rounds(), watch.told("west")[-1], ended, written,
        )  # fmt: skip


def outlived(started: list[int]) -> list[int]:
    """Which of these processes still run, after the moments in which they find out that who started them has ended."""
    until = time.monotonic() + 30
    while (left := list(filter(alive, started))) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def test_a_second_aggregator_on_the_same_folder_is_refused(lived: Lived) -> None:
    assert lived.second.code == 2
    assert "another aggregator uses" in lived.second.line


def test_what_a_killed_part_had_started_ends_with_it(lived: Lived) -> None:
    assert lived.left == []
    assert lived.left_at_party == []


def test_an_older_checkpoint_that_the_host_puts_back_is_refused(lived: Lived) -> None:
    assert (
        "the run did not begin: federation: the checkpoint is of round 1, and parties have seen round"
        in lived.restored
    )


def test_a_run_goes_on_from_its_last_round_when_its_aggregator_was_killed(lived: Lived) -> None:
    assert [one.done for one in lived.begun] == [0, len(lived.rounds) - 1]
    assert len({one.run for one in lived.begun}) == 1
    assert [one.number for one in lived.rounds] == [1, 2, 3, 4]
    assert lived.ended is not None
    assert lived.ended.finished
    assert lived.written


def test_a_round_does_not_wait_for_a_party_whose_workload_was_killed(lived: Lived) -> None:
    last = lived.rounds[-1]
    assert sorted(last.shares) == ["north", "south"]
    assert last.refused == {"west": NOT_READY}
    assert last.seconds < DEADLINE
    assert lived.gone.state == "admitted"
    assert lived.gone.reason == "its workload does not answer its agent"
    assert all(sorted(one.shares) == sorted(PARTIES) for one in lived.rounds[:-1])


def test_a_disturbed_run_comes_to_the_model_of_one_that_nothing_disturbed(lived: Lived) -> None:
    took_part = {one.number: sorted(one.shares) for one in lived.rounds}
    expected = undisturbed(lived.federation, lived.begun[0].run, took_part)
    assert [one.model for one in lived.rounds] == expected
    assert lived.ended is not None
    assert lived.ended.model == expected[-1]


def undisturbed(federation: Federation, run: str, took_part: Mapping[int, list[str]]) -> list[str]:
    """Digests of the models of all rounds, by the same parties in each, in one process without a break."""
    found, threads, digests = agreed(federation), torch.get_num_threads(), list[str]()
    torch.set_num_threads(1)  # as each workload has: sums in another order are others
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, threads)
        settings, plugin = found.federation.task.settings, find_task(found.federation.task.plugin)
        workloads = {}
        for party in PARTIES:
            model = undo.enter_context(ModelFiles.of_path(federation.model))
            workload = Workload(
                Identity.generate(), Places(Path(os.devnull), Path(os.devnull), Path(os.devnull))
            )
            files = data_of(party)
            workload.training = plugin(
                Opening(model, settings, lambda name, files=files: io.BytesIO(files[name]))  # type: ignore[misc]
            )
            workload.agreed, workload.leased = found, math.inf
            workload.order = cast("Any", SimpleNamespace(party=party))
            workloads[party] = workload
        first = workloads[PARTIES[0]].training
        assert first is not None
        exchange = _InOneProcess(workloads, took_part)

        def keep(kept: Kept, fact: object) -> None:
            if isinstance(fact, RoundDone):
                digests.append(digest_of(encode_arrays(kept.model)))
                exchange.number += 1

        Rounds(found.federation, run, exchange, keep=keep).go_on(Kept(0, first.arrays(), {}))
    return digests


class _InOneProcess:
    """Parties as objects."""

    def __init__(self, workloads: Mapping[str, Workload], took_part: Mapping[int, list[str]]) -> None:
        self._workloads = workloads
        self._took_part = took_part
        self.number = 1

    def ready(self) -> frozenset[str]:
        return frozenset(self._took_part[self.number])

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        for party, request in requests.items():
            answer = self._workloads[party].work(request)
            yield Reply(party, request.run, request.number, answer.content, answer.examples, answer.metrics)
