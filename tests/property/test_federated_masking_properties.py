"""Secure aggregation: whoever drops out, the mean is right or there is none, and of nobody two secrets are opened."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import FederationError, UpdateRefused
from cloister.federated.secure.sum import MaskedSum
from cloister.federated.secure.terms import (
    Keys,
    Left,
    Mail,
    Masked,
    Relayed,
    Revealed,
    Shares,
    hear,
    least_threshold,
    read,
)
from cloister.federated.secure.vectors import FRACTION, MAX_EXAMPLES, add_mask, mean, weighted
from masking_parts import LARGEST, STEPS, Play, expected, names, said, terms, update

KINDS = dict(zip(STEPS, (Keys, Shares, Masked, Left, Revealed), strict=True))


@given(count=st.integers(2, 8), data=st.data())
@settings(max_examples=40)
def test_whoever_drops_out_wherever_the_mean_is_of_the_survivors_or_there_is_none(
    count: int, data: st.DataObject
) -> None:
    gone = data.draw(st.dictionaries(st.sampled_from(names(count)), st.sampled_from(STEPS), max_size=3))
    threshold = data.draw(st.integers(least_threshold(count), count))
    of = terms(count, threshold=threshold)
    updates = {
        name: update(of, number, data.draw(st.integers(1, MAX_EXAMPLES)), norm=data.draw(st.floats(0, 3.99)))
        for number, name in enumerate(names(count))
    }
    play = Play(of, gone=gone, updates=updates)
    if count - len(gone) < threshold:
        with pytest.raises(FederationError, match="at least have to be"):
            play.result()
    else:
        found = play.result()
        survivors = {name for name in names(count) if STEPS.index(gone.get(name, "reveal")) > 2}
        assert found.parties == survivors
        wanted = {name: updates[name] for name in survivors}
        assert found.examples == sum(examples for _, examples in wanted.values())
        for name, array in expected(wanted).items():
            bound = 0.51 * LARGEST / 1_000_000 / FRACTION + np.abs(array) * 2.0**-24
            assert np.all(np.abs(found.arrays[name] - array) <= bound)
    # Of nobody anything but one secret, from everybody the same one.
    revealed = [said(message).body for message in play.said["reveal"].values()]
    keys, seeds = (
        {name for body in revealed for name in part(body)} for part in (lambda b: b.keys, lambda b: b.seeds)
    )
    assert not keys & seeds


@functools.cache
def played() -> Play:
    play = Play(terms(4), gone={"party03": "mask"})
    play.result()
    return play


def context_of(step: str) -> bytes:
    return bytes(said(played().said[step]["party00"]).context)


@given(step=st.sampled_from(STEPS), at=st.integers(0, 100_000))
@settings(max_examples=300)
def test_a_message_with_any_bit_flipped_is_none(step: str, at: int) -> None:
    message = bytearray(played().said[step]["party00"])
    message[at // 8 % len(message)] ^= 1 << at % 8
    with pytest.raises(UpdateRefused):
        hear(bytes(message), KINDS[step], context=context_of(step), terms=played().terms)


@given(step=st.sampled_from(STEPS), length=st.integers(0, 100_000))
def test_every_prefix_of_a_message_is_refused(step: str, length: int) -> None:
    message = played().said[step]["party00"]
    with pytest.raises(UpdateRefused):
        hear(message[: length % len(message)], KINDS[step], context=context_of(step), terms=played().terms)


@given(data=st.binary(max_size=300))
def test_whatever_bytes_come_the_readers_raise_their_own_error(data: bytes) -> None:
    for kind in (Relayed, Mail, Left):
        with pytest.raises(UpdateRefused):
            read(data, kind, what="it")
    with pytest.raises(UpdateRefused):
        MaskedSum(terms()).take(data, data)


@given(
    size=st.integers(1, 400_000),
    sign=st.sampled_from([1, -1]),
    key=st.binary(min_size=32, max_size=32),
    other=st.binary(min_size=32, max_size=32),
)
@settings(max_examples=15)
def test_a_mask_is_one_stream_however_long_and_goes_away_again(
    size: int, sign: int, key: bytes, other: bytes
) -> None:
    vector = np.arange(size, dtype="<u8")
    add_mask(vector, key, sign=sign)
    longer = np.arange(size + 1000, dtype="<u8")
    add_mask(longer, key, sign=sign)
    assert np.array_equal(vector, longer[:size])
    assert size < 8 or not np.any(vector[:8] == np.arange(8, dtype="<u8"))
    add_mask(vector, other, sign=sign)
    add_mask(vector, key, sign=-sign)
    add_mask(vector, other, sign=-sign)
    assert np.array_equal(vector, np.arange(size, dtype="<u8"))


@given(
    values=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=2, max_size=64),
    data=st.data(),
)
def test_quantising_errs_by_half_a_step_at_most_however_the_parties_weigh(
    values: list[list[float]], data: st.DataObject
) -> None:
    of = terms(len(values), shapes={"one": (3,)}, largest_ppm=90_000_000)
    weights = [data.draw(st.integers(1, MAX_EXAMPLES)) for _ in values]
    for row, weight in zip(values, weights, strict=True):
        # In steps, since a mean in 32 bits is rounded more than this.
        steps = weighted({"one": np.array(row, np.float32)}, weight, of).view("<i8")[1:] / weight
        assert np.all(np.abs(steps - np.array(row) * (FRACTION / 90)) <= 0.501)
    total = sum(
        weighted({"one": np.array(row, np.float32)}, weight, of)
        for row, weight in zip(values, weights, strict=True)
    )
    arrays, examples = mean(np.asarray(total, "<u8"), len(values), of)
    exact = np.average(np.array(values), axis=0, weights=weights)
    assert examples == sum(weights)
    assert np.all(np.abs(arrays["one"] - exact) <= 0.51 * 90 / FRACTION + np.abs(exact) * 2.0**-24)
