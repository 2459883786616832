"""How prompts and running answers share the time, on machines that are only numbers."""

from __future__ import annotations

import pytest

from cloister.inference.engines.torch_pace import CHUNK, MIN_CHUNK, Pace


def simulated(decode: float, token: float, *, decoding: int, reading: int, steps: int = 400) -> float:
    """The speed that running answers keep, on a machine with these seconds per decoding step and prompt token."""
    pace = Pace()
    for _ in range(5):
        pace.took(decode, decoding=decoding, read=0)
    seconds = 0.0
    for _ in range(steps):
        read = pace.allowance(decoding=decoding, reading=reading)
        took = decode + read * token
        pace.took(took, decoding=decoding, read=read)
        seconds += took
    return steps * decode / seconds


@pytest.mark.parametrize(
    ("decode", "token"),
    [
        pytest.param(0.1, 0.01, id="two cores"),
        pytest.param(0.02, 0.0005, id="many cores"),
        pytest.param(0.5, 0.03, id="a large model"),
    ],
)
def test_streams_keep_over_three_fifths_of_their_speed_while_one_prompt_is_read(
    decode: float, token: float
) -> None:
    assert 0.6 < simulated(decode, token, decoding=8, reading=1) < 0.8


def test_many_who_wait_get_more_of_the_time_than_one() -> None:
    assert simulated(0.1, 0.01, decoding=1, reading=7) < 0.4


def test_a_prompt_alone_is_read_in_the_largest_pieces() -> None:
    pace = Pace()
    pace.took(5.0, decoding=0, read=CHUNK)
    assert pace.allowance(decoding=0, reading=1) == CHUNK


def test_nothing_is_read_where_nobody_waits_and_answers_go_on() -> None:
    pace = Pace()
    pace.allowance(decoding=0, reading=2)
    assert pace.allowance(decoding=2, reading=0) == 0
    pace.took(0.1, decoding=2, read=0)
    assert pace.allowance(decoding=2, reading=1) >= MIN_CHUNK


def test_a_slow_machine_reads_in_small_pieces_beside_answers() -> None:
    pace = Pace()
    pace.took(1.0, decoding=1, read=0)
    pace.took(60.0, decoding=0, read=100)
    assert pace.allowance(decoding=1, reading=1) == MIN_CHUNK
