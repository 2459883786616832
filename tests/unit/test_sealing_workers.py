"""Sharing out jobs: each once, none after a failure, no thread left over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cloister.sealing.workers import Tally, share


@pytest.mark.parametrize("workers", [1, 2, 8, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_job_is_done_once(count: int, workers: int) -> None:
    done: list[int] = []
    share(count, lambda: done.append, workers=workers)
    assert sorted(done) == list(range(count))


def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise ValueError("job 3")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(ValueError, match="job 3"):
        share(10_000, lambda: work, workers=4)
    assert len(done) < 5_000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sealing")]


def test_every_thread_has_a_worker_of_its_own() -> None:
    makers: list[int] = []
    both = threading.Barrier(2, timeout=30)

    def make() -> Callable[[int], None]:
        makers.append(threading.get_ident())
        both.wait()
        return lambda number: None

    share(10, make, workers=2)
    assert len(set(makers)) == 2


def test_a_tally_adds_up_whoever_counts() -> None:
    seen: list[tuple[int, int]] = []
    tally = Tally(1000, lambda done, total: seen.append((done, total)))
    share(100, lambda: lambda number: tally.add(10), workers=4)
    assert seen == [(10 * step, 1000) for step in range(1, 101)]
    Tally(5, None).add(5)
