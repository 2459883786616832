"""The key of the state: k of n shares, or a passphrase; less than that opens nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import structs

import manifest_parts
from broker_parts import CHEAP, NOW, PASSPHRASE
from cloister.broker.state_key import (
    MAX_DOCUMENT,
    Cost,
    PassphraseLock,
    Share,
    ShareLock,
    StateDocument,
    StateKey,
    check_share,
    combine,
    commitment,
    encode_document,
    lock_by_owners,
    lock_by_passphrase,
    open_by_passphrase,
    open_by_shares,
    parse_document,
    seal,
    split,
    unseal,
)
from cloister.errors import KeystoreError, UsageError

STATE, OTHER = "ab" * 16, "cd" * 16
KEY = StateKey(bytes(range(32)))
NAMES = ("alice", "bob", "carol", "dave", "erin")


def locked(threshold: int, count: int, *, state: str = STATE) -> tuple[StateDocument, Mapping[str, Share]]:
    lock, shares = lock_by_owners(manifest_parts.keys(*NAMES[:count]), threshold, state=state, key=KEY)
    return StateDocument(id=state, created=NOW, lock=lock), shares


@pytest.mark.parametrize(
    ("threshold", "count"),
    [(k, n) for n in range(1, 6) for k in range(1, n + 1)],
    ids=str,
)
def test_any_k_shares_open_and_fewer_never_do(threshold: int, count: int) -> None:
    document, shares = locked(threshold, count)
    for size in range(count + 1):
        for chosen in itertools.combinations(shares.values(), size):
            if size >= threshold:
                assert open_by_shares(document, chosen) == KEY
            else:
                with pytest.raises(KeystoreError, match=f"{size} of {threshold} shares"):
                    open_by_shares(document, chosen)


def test_one_share_counts_once_however_often_it_is_given() -> None:
    document, shares = locked(2, 3)
    with pytest.raises(KeystoreError, match="1 of 2"):
        open_by_shares(document, [shares["alice"]] * 5)


@pytest.mark.parametrize("secret", [bytes(32), bytes(range(32)), b"\xff" * 32])
def test_fewer_shares_combine_to_something_else(secret: bytes) -> None:
    for threshold, count in ((2, 2), (3, 5)):
        shares = split(secret, threshold, count)
        assert combine(shares[:threshold]) == secret
        assert combine(shares[: threshold - 1]) != secret
        assert all(share != secret for _, share in shares)


ALTERED: dict[str, dict[str, Any]] = {
    "another state": {"state": OTHER},
    "another owner": {"owner": "bob"},
    "a stranger": {"owner": "mallory"},
    "another index": {"index": 2},
    "index nought": {"index": 0},
    "other bytes": {"share": bytes(32)},
    "no bytes": {"share": b""},
    "too many bytes": {"share": bytes(33)},
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED.keys())
def test_a_forged_share_is_refused_and_spoils_nothing(change: dict[str, Any]) -> None:
    document, shares = locked(2, 3)
    forged = structs.replace(shares["alice"], **change)
    with pytest.raises(KeystoreError, match="not one of this state's"):
        check_share(document, forged)
    with pytest.raises(KeystoreError):
        open_by_shares(document, [forged, shares["carol"]])
    assert open_by_shares(document, [forged, shares["carol"], shares["bob"]]) == KEY


def test_any_flipped_bit_of_a_share_is_found() -> None:
    document, shares = locked(2, 3)
    for index in range(32):
        altered = bytearray(shares["alice"].share)
        altered[index] ^= 1 << (index % 8)
        with pytest.raises(KeystoreError):
            check_share(document, structs.replace(shares["alice"], share=bytes(altered)))


def test_shares_of_another_state_open_nothing() -> None:
    document, _ = locked(2, 3)
    _, others = locked(2, 3, state=OTHER)
    for share in others.values():
        with pytest.raises(KeystoreError):
            check_share(document, share)
    moved = [structs.replace(share, state=STATE) for share in others.values()]
    with pytest.raises(KeystoreError):
        open_by_shares(document, moved)


def test_shares_of_two_locks_do_not_add_up() -> None:
    first, old = locked(2, 3)
    second, new = locked(2, 3)
    assert isinstance(second.lock, ShareLock)
    both = structs.replace(first, next=second.lock)
    with pytest.raises(KeystoreError, match="1 of 2 or 1 of 2"):
        open_by_shares(both, [old["alice"], new["bob"]])
    assert open_by_shares(both, [old["alice"], old["carol"]]) == KEY
    assert open_by_shares(both, [new["alice"], old["alice"], new["carol"]]) == KEY


def test_a_lock_whose_threshold_was_lowered_does_not_open() -> None:
    document, shares = locked(3, 5)
    assert isinstance(document.lock, ShareLock)
    lowered = structs.replace(document, lock=structs.replace(document.lock, threshold=2))
    with pytest.raises(KeystoreError):
        open_by_shares(lowered, [shares["alice"], shares["bob"]])
    with pytest.raises(KeystoreError):
        open_by_shares(lowered, shares.values())


def test_a_lock_with_a_forged_commitment_does_not_open() -> None:
    """Who can write to the database could let a share of his own in; the key is bound to all the commitments."""
    document, shares = locked(2, 3)
    assert isinstance(document.lock, ShareLock)
    mine = Share(state=STATE, owner="mallory", index=4, share=bytes(32))
    commitments = {**document.lock.commitments, "mallory": commitment(mine)}
    altered = structs.replace(document, lock=structs.replace(document.lock, commitments=commitments))
    with pytest.raises(KeystoreError):
        open_by_shares(altered, [shares["alice"], mine])
    with pytest.raises(KeystoreError):
        open_by_shares(altered, [shares["alice"], shares["bob"]])


def test_a_wrapped_key_of_another_state_does_not_open() -> None:
    document, shares = locked(2, 3)
    other, _ = locked(2, 3)
    assert isinstance(document.lock, ShareLock)
    assert isinstance(other.lock, ShareLock)
    for wrapped in (other.lock.wrapped, bytes(60), b"", document.lock.wrapped[:-1]):
        altered = structs.replace(document, lock=structs.replace(document.lock, wrapped=wrapped))
        with pytest.raises(KeystoreError):
            open_by_shares(altered, shares.values())


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (-1, 3), (1, 0), (1, 65)])
def test_shares_that_cannot_be_are_not_made(threshold: int, count: int) -> None:
    with pytest.raises(UsageError):
        lock_by_owners({f"o{number}": "key" for number in range(count)}, threshold, state=STATE, key=KEY)


def test_the_most_shares_that_can_be_are_made() -> None:
    lock, shares = lock_by_owners({f"o{number}": "k" * 75 for number in range(64)}, 40, state=STATE, key=KEY)
    document = StateDocument(id=STATE, created=NOW, lock=lock)
    assert open_by_shares(document, [shares[f"o{number}"] for number in range(20, 60)]) == KEY
    assert len(encode_document(structs.replace(document, next=lock))) < MAX_DOCUMENT


# -- passphrase --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laptop() -> tuple[StateDocument, StateKey]:
    return lock_by_passphrase(PASSPHRASE, state=STATE, now=NOW, cost=CHEAP)


def test_the_passphrase_opens_and_another_does_not(laptop: tuple[StateDocument, StateKey]) -> None:
    document, key = laptop
    assert open_by_passphrase(document, PASSPHRASE) == key
    for wrong in (PASSPHRASE + b"\n", PASSPHRASE[:-1], PASSPHRASE.upper()):
        with pytest.raises(KeystoreError, match="does not open"):
            open_by_passphrase(document, wrong)


EDITED: dict[str, dict[str, Any]] = {
    "another salt": {"salt": bytes(16)},
    "more iterations": {"cost": structs.replace(CHEAP, iterations=2)},
    "more lanes": {"cost": structs.replace(CHEAP, lanes=2)},
    "more memory": {"cost": structs.replace(CHEAP, memory_kib=9 * 1024)},
    "zeros": {"wrapped": bytes(60)},
    "nothing": {"wrapped": b""},
}


@pytest.mark.parametrize("change", EDITED.values(), ids=EDITED.keys())
def test_an_edited_document_does_not_open(
    laptop: tuple[StateDocument, StateKey], change: dict[str, Any]
) -> None:
    document, _ = laptop
    with pytest.raises(KeystoreError):
        open_by_passphrase(
            structs.replace(document, lock=structs.replace(document.lock, **change)), PASSPHRASE
        )


def test_a_document_renamed_to_another_state_does_not_open(laptop: tuple[StateDocument, StateKey]) -> None:
    with pytest.raises(KeystoreError):
        open_by_passphrase(structs.replace(laptop[0], id=OTHER), PASSPHRASE)


FORGED: dict[str, dict[str, Any]] = {
    "a terabyte": {"cost": Cost(memory_kib=1 << 30)},
    "no memory": {"cost": Cost(memory_kib=8)},
    "a million iterations": {"cost": Cost(iterations=1_000_000)},
    "no iteration": {"cost": Cost(iterations=0)},
    "a negative number": {"cost": Cost(lanes=-1)},
    "a thousand lanes": {"cost": Cost(lanes=1000)},
    "no salt": {"salt": b""},
    "a long salt": {"salt": bytes(17)},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_cost_cannot_exhaust_the_machine(
    laptop: tuple[StateDocument, StateKey], change: dict[str, Any]
) -> None:
    document, _ = laptop
    with pytest.raises(KeystoreError, match="bounds"):
        open_by_passphrase(
            structs.replace(document, lock=structs.replace(document.lock, **change)), PASSPHRASE
        )


@pytest.mark.parametrize("passphrase", [b"", b"x" * 11, b"x" * 1025], ids=["none", "short", "long"])
def test_a_passphrase_out_of_its_bounds_locks_and_opens_nothing(
    laptop: tuple[StateDocument, StateKey], passphrase: bytes
) -> None:
    with pytest.raises(UsageError):
        lock_by_passphrase(passphrase, state=STATE, now=NOW, cost=CHEAP)
    with (
        pytest.raises(KeystoreError, match="passphrase")
        if False
        else pytest.raises((UsageError, KeystoreError))
    ):
        open_by_passphrase(laptop[0], passphrase)


def test_each_way_opens_only_its_own_kind_of_state(laptop: tuple[StateDocument, StateKey]) -> None:
    owned, shares = locked(1, 2)
    with pytest.raises(UsageError, match="owners' shares"):
        open_by_passphrase(owned, PASSPHRASE)
    with pytest.raises(UsageError, match="passphrase"):
        open_by_shares(laptop[0], shares.values())


def test_what_is_made_by_default_costs_a_guess_a_tenth_of_a_second() -> None:
    assert (Cost().iterations, Cost().lanes, Cost().memory_kib) == (3, 4, 64 * 1024)


# -- documents and secrets ---------------------------------------------------------------------------------------------


def test_a_document_comes_back(laptop: tuple[StateDocument, StateKey]) -> None:
    owned, _ = locked(2, 3)
    assert isinstance(owned.lock, ShareLock)
    for document in (laptop[0], owned, structs.replace(owned, next=owned.lock)):
        assert parse_document(encode_document(document)) == document
    assert isinstance(laptop[0].lock, PassphraseLock)


def test_every_prefix_of_a_document_is_refused() -> None:
    data = encode_document(locked(2, 3)[0])
    for length in range(len(data)):
        with pytest.raises(KeystoreError):
            parse_document(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"\xff",
        b" " * (MAX_DOCUMENT + 1),
        b'{"format":"cloister/broker-state/v1"}',
    ],
    ids=["nothing", "null", "{}", "[]", "no text", "too long", "an older format"],
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(KeystoreError):
        parse_document(data)


def test_no_secret_is_shown() -> None:
    _, shares = locked(2, 3)
    shown = repr(KEY) + str(KEY) + "".join(repr(share) + str(share) for share in shares.values())
    for secret in (KEY.for_peer(), *(share.share for share in shares.values())):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_state_key_of_another_size_is_none(size: int) -> None:
    with pytest.raises(KeystoreError):
        StateKey(bytes(size))


def test_keys_for_different_purposes_are_different_and_the_log_s_is_stable() -> None:
    assert KEY.derive("cloister/a/v1") != KEY.derive("cloister/b/v1") != KEY.for_peer()
    one, two = KEY.log_key(), StateKey(KEY.for_peer()).log_key()
    assert one.public_key() == two.public_key()


def test_what_is_sealed_opens_in_its_place_only() -> None:
    cipher = KEY.cipher("cloister/test/v1")
    entropy = iter((b"n" * 12,))
    sealed = seal(cipher, b"secret", b"place", lambda _count: next(entropy))
    assert sealed[:12] == b"n" * 12
    assert unseal(cipher, sealed, b"place") == b"secret"
    wrong = [(sealed, b"elsewhere"), (sealed[:-1], b"place"), (sealed + b"x", b"place"), (b"", b"place")]
    for data, place in wrong:
        with pytest.raises(KeystoreError):
            unseal(cipher, data, place)
    with pytest.raises(KeystoreError):
        unseal(KEY.cipher("cloister/other/v1"), sealed, b"place")
