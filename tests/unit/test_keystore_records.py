"""Versions told by records: what is read as what, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker.keystores.records import (
    CLAIM_ENDS,
    VersionRecord,
    claimed,
    decode_record,
    destroyed,
    encode_record,
    has_ended,
    made,
    told,
)
from cloister.broker.keystores.versions import bound_aad
from cloister.errors import KeystoreError, KeystoreUnavailable
from spec_vectors import spec_vectors

VECTORS = spec_vectors("keystores.md")
ONE = made("models", 1, "ada", 10, "aa")
TWO = made("models", 2, "ada", 20, "bb")
(FIRST,) = told("models", [ONE], "the store")
ENDED = destroyed("models", FIRST)


def test_the_record_of_the_page_is_what_we_write_and_read() -> None:
    record = made("models", 1, "ada", 1_800_000_000, "000102030405060708090a0b0c0d0e0f")
    assert encode_record(record).decode() == VECTORS["record"]
    assert decode_record(VECTORS["record"].encode(), "models", "the store") == record


@pytest.mark.parametrize("store", ["pkcs11", "kmip"])
def test_what_a_wrap_binds_is_that_of_the_page(store: str) -> None:
    aad = bytes.fromhex(VECTORS["aad"])
    bound = bound_aad(f"cloister/{store}-wrap/v1", VECTORS["key_id"], VECTORS["version"], aad)
    assert bound.hex() == VECTORS[store]["bound"]


def test_no_two_keys_versions_records_or_stores_bind_the_same() -> None:
    aads = (bytes(32), b"\x01" + bytes(31))
    bound = {
        bound_aad(label, key, version, aad)
        for label in ("cloister/pkcs11-wrap/v1", "cloister/kmip-wrap/v1")
        for key in ("a", "ab", "b")
        for version in (1, 2, 256)
        for aad in aads
    }
    assert len(bound) == 2 * 3 * 3 * 2


@pytest.mark.parametrize("order", [[ONE, TWO, ENDED], [ENDED, TWO, ONE], [TWO, ENDED, ENDED, ONE, ONE]])
def test_the_order_and_the_number_of_equal_records_do_not_matter(order: list[VersionRecord]) -> None:
    versions = told("models", order, "the store")
    assert [(one.number, one.destroyed, one.handle) for one in versions] == [
        (1, True, "aa"),
        (2, False, "bb"),
    ]


def test_no_records_are_no_versions() -> None:
    assert told("models", [], "the store") == ()


REFUSED = {
    "a gap": [ONE, made("models", 3, "ada", 1, "cc")],
    "no first version": [TWO],
    "destroyed but never made": [ENDED],
    "a claim in a gap": [ONE, claimed("models", 2, "ada", 1, "bb"), made("models", 3, "ada", 1, "cc")],
    "destroyed out of the blue": [ONE, ENDED, destroyed("models", told("models", [ONE, TWO], "s")[1])],
}


@pytest.mark.parametrize("attack", REFUSED)
def test_records_that_do_not_add_up_are_refused(attack: str) -> None:
    with pytest.raises(KeystoreError) as refusal:
        told("models", REFUSED[attack], "the store")
    assert not isinstance(refusal.value, KeystoreUnavailable)


@pytest.mark.parametrize(
    "rival",
    [
        made("models", 1, "eve", 10, "aa"),
        made("models", 1, "ada", 10, "ff"),
        made("models", 1, "ada", 11, "aa"),
    ],
    ids=["another owner", "another object", "another time"],
)
def test_of_two_records_that_made_one_version_neither_is_used(rival: VersionRecord) -> None:
    with pytest.raises(KeystoreError, match="two objects") as refusal:
        told("models", [ONE, rival], "the store")
    assert not isinstance(refusal.value, KeystoreUnavailable)  # it does not pass by itself


def test_a_claim_is_no_version_and_hides_none() -> None:
    claims = [claimed("models", number, "eve", 10, "ff") for number in (1, 2, 3, 9)]
    assert told("models", claims, "the store") == ()
    assert told("models", [*claims, ONE, TWO, ENDED], "the store") == told(
        "models", [ONE, TWO, ENDED], "the store"
    )
    with pytest.raises(KeystoreError):
        told("models", [claims[0], ENDED], "the store")  # a claim makes nothing that could be destroyed


def test_only_a_claim_ends_and_only_when_its_time_is_over() -> None:
    claim = claimed("models", 1, "ada", 1000, "aa")
    assert [has_ended(claim, now) for now in (0, 1000, 1000 + CLAIM_ENDS - 1)] == [False] * 3
    assert has_ended(claim, 1000 + CLAIM_ENDS)
    assert not has_ended(ONE, 10**9)
    assert not has_ended(ENDED, 10**9)


@given(st.data())
def test_a_record_of_a_changed_byte_is_refused_or_says_so(data: st.DataObject) -> None:
    encoded = bytearray(encode_record(ONE))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != encoded[place]))
    try:
        read = decode_record(bytes(encoded), "models", "the store")
    except KeystoreError:
        return
    assert read != ONE


@given(st.integers(0, len(encode_record(ONE)) - 1))
def test_every_prefix_of_a_record_is_refused(length: int) -> None:
    with pytest.raises(KeystoreError):
        decode_record(encode_record(ONE)[:length], "models", "the store")


@given(st.binary(max_size=2048))
def test_garbage_is_refused_in_our_own_words(data: bytes) -> None:
    with pytest.raises(KeystoreError):
        decode_record(data, "models", "the store")
