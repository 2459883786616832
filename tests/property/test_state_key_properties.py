"""The state key: any k of n shares of one lock open it, nothing else does, whatever bit is flipped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker_parts import NOW
from cloister.broker.state_key import (
    Share,
    ShareLock,
    StateDocument,
    StateKey,
    check_share,
    combine,
    encode_document,
    lock_by_owners,
    open_by_shares,
    parse_document,
    seal,
    split,
    unseal,
)
from cloister.errors import KeystoreError, UsageError

STATE = "ab" * 16
NAMES = tuple(f"owner{number}" for number in range(9))

keys = st.binary(min_size=32, max_size=32)


@st.composite
def locked(draw: st.DrawFn) -> tuple[StateKey, StateDocument, list[Share]]:
    count = draw(st.integers(1, 9))
    threshold = draw(st.integers(1, count))
    key = StateKey(draw(keys))
    lock, shares = lock_by_owners(
        {name: f"key of {name}" for name in NAMES[:count]}, threshold, state=STATE, key=key
    )
    return key, StateDocument(id=STATE, created=NOW, lock=lock), list(shares.values())


def threshold_of(document: StateDocument) -> int:
    assert isinstance(document.lock, ShareLock)
    return document.lock.threshold


def flipped(data: bytes, at: int) -> bytes:
    altered = bytearray(data)
    altered[at // 8 % len(data)] ^= 1 << (at % 8)
    return bytes(altered)


@given(made=locked(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_enough_shares_open_in_any_order_and_fewer_never(
    made: tuple[StateKey, StateDocument, list[Share]], data: st.DataObject
) -> None:
    key, document, shares = made
    chosen = data.draw(st.lists(st.sampled_from(shares), unique_by=lambda share: share.index))
    again = data.draw(st.lists(st.sampled_from(chosen), max_size=3)) if chosen else []
    if len(chosen) >= threshold_of(document):
        assert open_by_shares(document, [*again, *chosen]) == key
    else:
        with pytest.raises(KeystoreError):
            open_by_shares(document, [*chosen, *again])


@given(made=locked(), at=st.integers(0, 255), data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_share_with_any_bit_flipped_is_none(
    made: tuple[StateKey, StateDocument, list[Share]], at: int, data: st.DataObject
) -> None:
    key, document, shares = made
    victim = data.draw(st.sampled_from(shares))
    altered = structs.replace(victim, share=flipped(victim.share, at))
    with pytest.raises(KeystoreError):
        check_share(document, altered)
    others = [share for share in shares if share is not victim]
    if len(others) >= threshold_of(document):
        assert open_by_shares(document, [altered, *others]) == key
    else:
        with pytest.raises(KeystoreError):
            open_by_shares(document, [altered, *others])


@given(made=locked(), at=st.integers(0, 10_000))
@settings(max_examples=120, deadline=None)
def test_a_document_with_any_bit_flipped_opens_nothing_or_is_the_same_key(
    made: tuple[StateKey, StateDocument, list[Share]], at: int
) -> None:
    """``created`` alone is not bound to the key: the state tree holds the digest of the whole document."""
    key, document, shares = made
    data = encode_document(document)
    try:
        opened = open_by_shares(parse_document(flipped(data, at)), shares)
    except (KeystoreError, UsageError):
        return
    altered = parse_document(flipped(data, at))
    assert opened == key
    assert structs.replace(altered, created=NOW) == document


@given(made=locked(), length=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_prefix_of_a_document_is_refused(
    made: tuple[StateKey, StateDocument, list[Share]], length: int
) -> None:
    data = encode_document(made[1])
    with pytest.raises(KeystoreError):
        parse_document(data[: length % len(data)])


@given(document=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_whatever_a_document_s_bytes_are_the_parser_raises_its_own_error(document: bytes) -> None:
    with pytest.raises(KeystoreError):
        parse_document(document)


@given(one=locked(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_two_locks_open_each_by_its_own_shares_and_never_by_a_mixture(
    one: tuple[StateKey, StateDocument, list[Share]], data: st.DataObject
) -> None:
    key, document, old = one
    count = data.draw(st.integers(1, 9))
    threshold = data.draw(st.integers(1, count))
    lock, made = lock_by_owners(
        {name: f"key of {name}" for name in NAMES[:count]}, threshold, state=STATE, key=key
    )
    both = structs.replace(document, next=lock)
    new = list(made.values())
    some_old = data.draw(st.lists(st.sampled_from(old), unique_by=lambda share: share.index))
    some_new = data.draw(st.lists(st.sampled_from(new), unique_by=lambda share: share.index))
    if len(some_old) >= threshold_of(document) or len(some_new) >= threshold:
        assert open_by_shares(both, [*some_old, *some_new]) == key
    else:
        with pytest.raises(KeystoreError):
            open_by_shares(both, [*some_old, *some_new])


@given(
    secret=keys,
    shape=st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_splitting_and_combining_is_a_round_trip(
    secret: bytes, shape: tuple[int, int], data: st.DataObject
) -> None:
    threshold, count = shape
    shares = split(secret, threshold, count)
    chosen = data.draw(st.permutations(shares))[:threshold]
    assert combine(chosen) == secret


@given(secret=st.binary(max_size=200), aad=st.binary(max_size=40), at=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_what_is_sealed_comes_back_and_no_flipped_bit_does(secret: bytes, aad: bytes, at: int) -> None:
    cipher = StateKey(bytes(range(32))).cipher("cloister/test/v1")
    sealed = seal(cipher, secret, aad, bytes)
    assert unseal(cipher, sealed, aad) == secret
    with pytest.raises(KeystoreError):
        unseal(cipher, flipped(sealed, at), aad)
    with pytest.raises(KeystoreError):
        unseal(cipher, sealed[: at % len(sealed)], aad)
