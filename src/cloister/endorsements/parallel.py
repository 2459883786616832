"""A few calls at once, in threads that nobody has to wait for: the first error ends the waiting.

The threads are daemons, so that an abandoned call cannot keep a process from ending. Calls are bounded by themselves.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, TypeVar

T = TypeVar("T")


def run_all(
    calls: Sequence[Callable[[], T]],
    *,
    at_once: int,
    stop: threading.Event,
    finished: Callable[[int, int], None],
) -> list[T]:
    """Each call's value, in order; the first error is raised at once. ``stop`` is set when nobody waits any more.

    ``finished`` is called in this thread with the number of the call that ended, and how many have.
    """
    found: dict[int, T] = {}
    numbers = iter(range(len(calls)))  # next() on it is atomic
    outcomes: queue.SimpleQueue[tuple[int, Callable[[], T]]] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set() and (number := next(numbers, None)) is not None:
            outcomes.put((number, outcome_of(calls[number])))

    for _ in range(min(at_once, len(calls))):
        threading.Thread(target=work, name="cloister-endorsements", daemon=True).start()
    try:
        for count in range(1, len(calls) + 1):
            number, outcome = outcomes.get()
            found[number] = outcome()
            finished(number, count)
    finally:
        stop.set()
    return [found[number] for number in range(len(calls))]


def outcome_of(call: Callable[[], T]) -> Callable[[], T]:
    """``call``'s value or error, for another thread to take."""
    try:
        value = call()
    except BaseException as error:  # whatever it is, whoever waits for it gets it
        return partial(_throw, error)
    return lambda: value


def _throw(error: BaseException) -> NoReturn:
    raise error
