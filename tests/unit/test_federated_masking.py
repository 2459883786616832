"""Secure aggregation: the weighted mean comes out, and an aggregator that lies is told nothing else. Named attacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import structs

from cloister.encoding import decode_json, encode_json
from cloister.errors import FederationError, UpdateRefused, UsageError
from cloister.federated.secure.masks import MaskedParty, Tried
from cloister.federated.secure.shares import commitment, open_shares, pair_key, seal_shares, self_key
from cloister.federated.secure.sum import MaskedSum
from cloister.federated.secure.terms import (
    Left,
    Mail,
    Masked,
    Relayed,
    Terms,
    hear,
    least_threshold,
    read_roster,
    say,
)
from cloister.federated.secure.vectors import FRACTION, MAX_EXAMPLES, add_mask, mean, weighted
from masking_parts import LARGEST, STEPS, Play, expected, identity, names, resaid, said, terms, update
from spec_vectors import spec_vectors

VECTORS = spec_vectors("secure-aggregation.md")
STEP = LARGEST / 1_000_000 / FRACTION


def require_mean(play: Play, survivors: set[str]) -> None:
    found = play.result()
    wanted = {name: play.updates[name] for name in survivors}
    assert found.parties == survivors
    assert found.examples == sum(examples for _, examples in wanted.values())
    for name, array in expected(wanted).items():
        assert found.arrays[name].dtype == np.float32
        assert found.arrays[name].shape == array.shape
        assert np.all(np.abs(found.arrays[name] - array) <= 0.51 * STEP + np.abs(array) * 2.0**-24)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_the_weighted_mean_comes_out_and_says_of_how_many_examples_it_is(count: int) -> None:
    require_mean(Play(terms(count)), set(names(count)))


@pytest.mark.parametrize("step", ["keys", "shares", "mask", "agree", "reveal"])
def test_the_round_goes_on_without_who_drops_out_in_any_step(step: str) -> None:
    gone = names(7)[2:4]
    survivors = set(names(7)) - set(gone) if step in ("keys", "shares", "mask") else set(names(7))
    require_mean(Play(terms(7), gone=dict.fromkeys(gone, step)), survivors)


def test_the_round_goes_on_without_two_that_drop_out_in_different_steps() -> None:
    require_mean(
        Play(terms(7), gone={"party01": "mask", "party06": "shares"}), set(names(7)) - {"party01", "party06"}
    )


@pytest.mark.parametrize("step", ["keys", "shares", "mask", "agree", "reveal"])
def test_with_too_few_survivors_nothing_is_opened(step: str) -> None:
    with pytest.raises(FederationError, match="4 parties are left in round 3, and 5 at least"):
        Play(terms(7), gone=dict.fromkeys(names(7)[:3], step)).result()


# --- the aggregator lies


def relayed(messages: dict[str, bytes]) -> bytes:
    return encode_json(Relayed(said=tuple(messages[name] for name in sorted(messages))))


OTHER = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()


def keys_of_its_own(play: Play) -> dict[str, bytes]:
    # Signed, but by a key that is nobody's here.
    return play.said["keys"] | {"party01": resaid(play.said["keys"]["party01"], "aggregator", mask=OTHER)}


def keys_under_another_s_signature(play: Play) -> dict[str, bytes]:
    found = said(play.said["keys"]["party01"])
    return play.said["keys"] | {
        "party01": encode_json(structs.replace(found, body=structs.replace(found.body, share=OTHER)))
    }


def keys_of_another_party(play: Play) -> dict[str, bytes]:
    # A party that works with the aggregator signs for one that does not.
    return play.said["keys"] | {"party01": resaid(play.said["keys"]["party01"], "party02", mask=OTHER)}


def keys_of_a_stranger(play: Play) -> dict[str, bytes]:
    found = said(play.said["keys"]["party01"])
    return play.said["keys"] | {"stranger": encode_json(structs.replace(found, party="stranger"))}


def keys_of_another_round(play: Play) -> dict[str, bytes]:
    earlier = Play(terms(number=2)).until("shares")
    return play.said["keys"] | {"party01": earlier.said["keys"]["party01"]}


def a_party_less_than_needed(play: Play) -> dict[str, bytes]:
    return {name: play.said["keys"][name] for name in ("party00", "party03")}


def not_its_own(play: Play) -> dict[str, bytes]:
    return {name: message for name, message in play.said["keys"].items() if name != "party00"}


def its_own_of_an_earlier_try(play: Play) -> dict[str, bytes]:
    return play.said["keys"] | {"party00": MaskedParty(play.terms, "party00", identity("party00")).keys()}


@pytest.mark.parametrize(
    ("roster", "words"),
    [
        (keys_of_its_own, "not signed with its attested key"),
        (keys_under_another_s_signature, "not signed with its attested key"),
        (keys_of_another_party, "not signed with its attested key"),
        (keys_of_a_stranger, "takes no part"),
        (keys_of_another_round, "of another run, round or model"),
        (a_party_less_than_needed, "2 parties, and 3"),
        (not_its_own, "not the keys of this party"),
        (its_own_of_an_earlier_try, "not the keys of this party"),
    ],
)
def test_a_party_gives_no_shares_to_keys_that_the_others_did_not_sign(
    roster: Callable[[Play], dict[str, bytes]], words: str
) -> None:
    play = Play(terms()).until("shares")
    with pytest.raises(FederationError, match=words):
        play.parties["party00"].shares(relayed(roster(play)))
    # Nor to the right ones afterwards.
    with pytest.raises(FederationError, match="at 'over', not at 'shares'"):
        play.parties["party00"].shares(play.told["party00"])


def test_a_party_in_the_roster_twice_does_not_count_twice() -> None:
    play = Play(terms()).until("shares")
    some = play.said["keys"]
    with pytest.raises(UpdateRefused, match="different ones"):
        play.parties["party00"].shares(
            encode_json(Relayed(said=(some["party00"], some["party01"], some["party01"])))
        )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"run": "other"}, id="run"),
        pytest.param({"number": 4}, id="round"),
        pytest.param({"model": "22" * 32}, id="a model that gives one party's update away"),
        pytest.param({"largest_ppm": LARGEST + 1}, id="bound"),
        pytest.param({"threshold": 4}, id="threshold"),
        pytest.param({"shapes": {"weight": (4, 3), "bias": (3,)}}, id="shapes"),
        pytest.param(
            {"parties": {n: identity(n).public_key() for n in names(5)}, "threshold": 4}, id="more parties"
        ),
    ],
)
def test_who_was_told_other_terms_is_heard_by_nobody(changes: dict[str, Any]) -> None:
    message = MaskedParty(terms(**changes), "party01", identity("party01")).keys()
    play = Play(terms()).until("shares")
    with pytest.raises(UpdateRefused, match="of another run, round or model"):
        MaskedSum(terms()).take(message)
    with pytest.raises(UpdateRefused, match="of another run, round or model"):
        play.parties["party00"].shares(relayed(play.said["keys"] | {"party01": message}))


@pytest.mark.parametrize("step", ["keys", "shares", "mask", "agree", "reveal"])
def test_a_replayed_message_of_an_earlier_try_round_or_step_changes_nothing(step: str) -> None:
    again, round_before = Play(terms(), gone={"party00": step}), Play(terms(number=2))
    first_try = Play(terms())
    for earlier in (first_try, round_before):
        earlier.result()
    again.until(step)
    # Keys of an earlier try are as good as any, to the aggregator: their party refuses the roster that has them.
    for earlier in (round_before,) if step == "keys" else (round_before, first_try):
        with pytest.raises(UpdateRefused, match="of another run, round or model"):
            again.sum.take(earlier.said[step]["party00"], earlier.vectors["party00"])
    if step != "keys":
        with pytest.raises(UpdateRefused, match=r"of another run, round or model|of another step"):
            again.sum.take(again.said[STEPS[STEPS.index(step) - 1]]["party00"])
    for one in STEPS[STEPS.index(step) :]:
        again.step(one)
    assert again.sum.result().parties == set(names(4)) - ({"party00"} if STEPS.index(step) < 3 else set())


def test_a_party_says_nothing_twice_in_a_step() -> None:
    play = Play(terms())
    message = play.parties["party00"].keys()
    play.sum.take(message)
    assert play.sum.waits_for == set(names(4)) - {"party00"}
    with pytest.raises(UpdateRefused, match="said this already"):
        play.sum.take(message)
    with pytest.raises(FederationError, match="at 'shares', not at 'keys'"):
        play.parties["party00"].keys()


def mail_of(play: Play, name: str) -> dict[str, bytes]:
    return decode_json(play.told[name], Mail, what="mail").sealed


@pytest.mark.parametrize(
    ("mail", "words"),
    [
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party01": mail_of(play, "party02")["party01"]},
            "the shares of 'party01' are not for this party", id="those for another party",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party01": mail_of(play, "party00")["party02"]},
            "the shares of 'party01' are not for this party", id="those of another party",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party01": mail_of(play, "party01")["party00"]},
            "the shares of 'party01' are not for this party", id="its own, sent back",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party01": mail_of(Play(terms()).until("mask"), "party00")["party01"]},
            "the shares of 'party01' are not for this party", id="those of another try",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party01": mail_of(play, "party00")["party01"][:-1]},
            "the shares of 'party01' are not for this party", id="cut short",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party09": bytes(80)}, "not in the roster", id="of a stranger",
        ),
        pytest.param(
            lambda play: {"party01": mail_of(play, "party00")["party01"]}, "2 parties gave shares, and 3", id="of too few",
        ),
        pytest.param(
            lambda play: mail_of(play, "party00") | {"party00": bytes(80)}, "not in the roster", id="of itself",
        ),
    ],
)  # fmt: skip
def test_a_party_masks_nothing_over_shares_that_are_not_its_own_of_this_try(
    mail: Callable[[Play], dict[str, bytes]], words: str
) -> None:
    play = Play(terms()).until("mask")
    with pytest.raises(FederationError, match=words):
        play.parties["party00"].mask(encode_json(Mail(sealed=mail(play))), *play.updates["party00"])
    with pytest.raises(FederationError, match="at 'over'"):
        play.says("party00", "mask")


def left(survivors: str, senders: str = "0123") -> bytes:
    return encode_json(
        Left(
            senders=tuple(f"party0{number}" for number in senders),
            survivors=tuple(f"party0{number}" for number in survivors),
        )
    )


@pytest.mark.parametrize(
    ("told", "words"),
    [
        pytest.param(left("123"), "lacks this party", id="without it"),
        pytest.param(left("01"), "2 parties are left, and 3", id="too few"),
        pytest.param(left("0011"), "those who gave shares", id="too few, twice each"),
        pytest.param(left("0129"), "has one without shares", id="a stranger"),
        pytest.param(left("012", "012"), "those who gave shares", id="others gave shares"),
        pytest.param(left("210"), "those who gave shares", id="another order"),
    ],
)
def test_a_party_signs_no_list_of_survivors_that_cannot_be(told: bytes, words: str) -> None:
    play = Play(terms()).until("agree")
    with pytest.raises(FederationError, match=words):
        play.parties["party00"].agree(told)


def test_two_lists_of_survivors_never_both_have_enough_signatures() -> None:
    """The aggregator tells 00 and 03 that 01 dropped out, and the others that 00 did: it wants both secrets of each."""
    play = Play(terms()).until("agree")
    one = {name: play.parties[name].agree(left("023")) for name in ("party00", "party03")}
    other = {name: play.parties[name].agree(left("123")) for name in ("party01", "party02")}
    with pytest.raises(FederationError, match="2 parties signed who is left, and 3"):
        play.parties["party00"].reveal(relayed(one))
    with pytest.raises(FederationError, match="told others of other survivors"):
        play.parties["party03"].reveal(relayed(one | {"party02": other["party02"]}))
    with pytest.raises(FederationError, match="at 'reveal', not at 'agree'"):
        play.parties["party01"].agree(left("023"))
    with pytest.raises(FederationError, match="not signed with its attested key"):
        play.parties["party02"].reveal(
            relayed(other | {"party03": resaid(one["party03"], "party02", survivors=names(4)[1:])})
        )


def test_signatures_of_who_dropped_out_and_of_too_few_open_nothing() -> None:
    play = Play(terms(7), gone={"party06": "mask"}).until("reveal")
    good = play.said["agree"]
    found = said(good["party01"])
    dropped = say(found.body, party="party06", context=found.context, identity=identity("party06"))
    for name, signatures, words in (
        ("party00", {**good, "party06": dropped}, "told others of other survivors"),
        ("party01", dict.fromkeys(names(7), good["party02"]), "1 parties signed who is left, and 5"),
        ("party02", {one: good[one] for one in names(4)}, "4 parties signed who is left, and 5"),
    ):
        with pytest.raises(FederationError, match=words):
            play.parties[name].reveal(relayed(signatures))


def test_of_each_party_either_the_key_is_revealed_or_the_seed_and_only_once() -> None:
    play = Play(terms(7), gone={"party01": "shares", "party04": "mask"})
    play.result()
    for message in play.said["reveal"].values():
        body = said(message).body
        # Who gave no shares masked nothing, and nobody masked anything with it.
        assert body.keys.keys() == {"party04"}
        assert body.seeds.keys() == set(names(7)) - {"party01", "party04"}
    for again in (play.parties["party00"].reveal, play.parties["party00"].agree):
        with pytest.raises(FederationError, match="at 'over'"):
            again(play.told["party00"])


def test_a_round_that_is_tried_again_is_opened_for_the_same_parties_only() -> None:
    """Else the difference of two sums of one round is one party's update."""
    first = Play(terms(7), gone={"party06": "mask"})
    first.result()
    before = {name: party.tried for name, party in first.parties.items()}
    assert before["party00"] == Tried(terms=terms(7).digest(), opened=names(7)[:6])
    assert before["party06"] == Tried(terms=terms(7).digest(), opened=())
    with pytest.raises(FederationError, match="the difference would be one's update"):
        Play(terms(7), before=before, gone={"party05": "mask"}).result()
    with pytest.raises(FederationError, match="begun under other terms"):
        Play(terms(6), before={"party00": before["party00"]})
    again = Play(terms(7), before=before, gone={"party06": "mask"})
    require_mean(again, set(names(7)[:6]))
    # It stays so, also where the second try reveals nothing.
    third = Play(terms(7), before={name: party.tried for name, party in again.parties.items()}).until("agree")
    assert third.parties["party00"].tried == before["party00"]
    # Where nothing was opened, any survivors may be.
    masked = Play(terms(7)).until("agree")
    require_mean(Play(terms(7), before={name: p.tried for name, p in masked.parties.items()}), set(names(7)))


# --- what the aggregator sees


def chi_square(vector: Any) -> float:
    """Of all bytes against uniform ones: 255 degrees of freedom. Over 420 once in 10^9 times."""
    data = np.frombuffer(memoryview(vector).cast("B"), np.uint8)
    counts = np.bincount(data, minlength=256)
    return float((np.square(counts - len(data) / 256) / (len(data) / 256)).sum())


def test_a_masked_vector_and_every_sum_but_the_whole_look_like_noise() -> None:
    of = terms(4, shapes={"weight": (1 << 16,)})
    play = Play(of).until("agree")
    plain = [weighted(*play.updates[name], of) for name in names(4)]
    masked = [np.frombuffer(play.vectors[name], "<u8").copy() for name in names(4)]
    assert chi_square(plain[0]) > 10_000
    assert all(chi_square(vector) < 420 for vector in masked)
    assert chi_square(sum(masked)) < 420
    # Whoever knows the seeds of all still cannot read one, nor the sum of all but one.
    for name, vector in zip(names(4), masked, strict=True):
        party = play.parties[name]
        add_mask(vector, self_key(party._seed, party._roster, name), sign=-1)
    assert all(chi_square(vector) < 420 for vector in masked)
    assert chi_square(sum(masked[1:])) < 420
    assert np.array_equal(sum(masked), sum(plain))


def test_a_vector_of_who_was_said_to_drop_out_stays_masked() -> None:
    """Its mask key is opened then, and its seed is not."""
    of = terms(4, shapes={"weight": (1 << 16,)})
    play = Play(of, gone={"party03": "agree"}).until("mask")
    for name in names(4):
        message = play.says(name, "mask")
        if name != "party03":
            play.sum.take(message, play.vectors[name])
    play.told = play.sum.close()
    play.step("agree")
    play.step("reveal")
    assert play.sum.result().parties == set(names(3))
    late = play.parties["party03"]
    vector = np.frombuffer(play.vectors["party03"], "<u8").copy()
    for other in names(3):
        theirs = play.parties[other]._keys.mask
        key = pair_key(late._mask, theirs, late._roster, "party03", other)
        add_mask(vector, key, sign=1)
    assert chi_square(vector) < 420
    add_mask(vector, self_key(late._seed, late._roster, "party03"), sign=-1)
    assert np.array_equal(vector, weighted(*play.updates["party03"], of))


def test_two_rounds_of_one_update_have_nothing_in_common() -> None:
    one, other = (
        Play(terms(number=number), updates={n: update(terms(), 1) for n in names(4)}) for number in (1, 2)
    )
    for play in (one, other):
        play.until("agree")
    assert not np.any(
        np.frombuffer(one.vectors["party00"], "<u8") == np.frombuffer(other.vectors["party00"], "<u8")
    )


# --- a party lies


def test_a_wrong_share_is_told_from_a_right_one_and_nothing_is_averaged() -> None:
    for what in ("keys", "seeds"):
        play = Play(terms(7), gone={"party06": "mask"}).until("reveal")
        for name in names(6):
            message = play.says(name, "reveal")
            if name == "party02":
                shares = dict(getattr(said(message).body, what))
                victim = next(iter(shares))
                shares[victim] = bytes(32)
                message = resaid(message, **{what: shares})
            play.sum.take(message)
        with pytest.raises(FederationError, match="do not give its secret"):
            play.sum.result()
        with pytest.raises(UsageError):
            play.sum.result()


@pytest.mark.parametrize(
    ("step", "changes", "words"),
    [
        ("keys", {"mask": bytes(31)}, "does not fit"),
        ("shares", {"sealed": {"party01": bytes(80)}}, "does not fit"),
        ("shares", {"sealed": dict.fromkeys(names(4)[1:], bytes(79))}, "does not fit"),
        ("mask", {"senders": names(3)}, "does not fit"),
        ("mask", {"vector": bytes(32)}, "not the one that it signed"),
        ("agree", {"survivors": names(3)}, "does not fit"),
        ("reveal", {"keys": {"party00": bytes(32)}}, "does not fit"),
        ("reveal", {"seeds": dict.fromkeys(names(3), bytes(32))}, "does not fit"),
        ("reveal", {"seeds": dict.fromkeys(names(4), bytes(31))}, "does not fit"),
    ],
)
def test_a_message_that_does_not_fit_changes_nothing(step: str, changes: dict[str, Any], words: str) -> None:
    play = Play(terms()).until(step)
    message = play.says("party00", step)
    with pytest.raises(UpdateRefused, match=words):
        play.sum.take(resaid(message, **changes), play.vectors.get("party00", b""))
    assert play.sum.waits_for == set(names(4))
    assert play.sum.take(message, play.vectors.get("party00", b"")) == "party00"


def test_a_vector_that_was_altered_or_cut_on_the_way_is_refused() -> None:
    play = Play(terms()).until("mask")
    message = play.says("party00", "mask")
    whole = bytes(play.vectors["party00"])
    for vector in (b"", whole[:-8], whole + bytes(8), bytes([whole[0] ^ 1]) + whole[1:]):
        with pytest.raises(UpdateRefused, match="not the one that it signed"):
            play.sum.take(message, vector)
    play.sum.take(message, whole)


def test_a_vector_of_another_length_is_refused_though_its_party_signed_it() -> None:
    play = Play(terms()).until("mask")
    message = play.says("party00", "mask")
    for vector in (
        b"",
        bytes(8),
        bytes(play.vectors["party00"]) + bytes(8),
        bytes(play.vectors["party00"])[1:],
    ):
        signed = resaid(message, vector=hashlib.sha256(vector).digest())
        with pytest.raises(UpdateRefused, match="not the one that it signed"):
            play.sum.take(signed, vector)


def test_a_message_has_one_spelling() -> None:
    play = Play(terms()).until("shares")
    message = play.says("party00", "shares")
    for other in (
        message.replace(b'","', b'", "', 1),
        message + b"\n",
        message.replace(b"party00", b"party\\u00300"),
    ):
        with pytest.raises(UpdateRefused, match="not canonical JSON"):
            play.sum.take(other)
    with pytest.raises(UpdateRefused, match="over its bound"):
        play.sum.take(message + bytes(1 << 20))


def test_shares_that_are_no_two_shares_are_refused() -> None:
    """Sealed by a party as it should be, to the right one: what is short would be a share of the other secret."""
    own, theirs = (X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
    for size in (0, 32, 63, 65):
        sealed = seal_shares(bytes(size), own, theirs.public_key().public_bytes_raw(), b"roster", b"a", b"b")
        with pytest.raises(UpdateRefused, match="the shares of 'a'"):
            open_shares(sealed, theirs, own.public_key().public_bytes_raw(), b"roster", b"a", b"b")


def test_a_key_of_low_order_is_refused() -> None:
    play = Play(terms()).until("shares")
    poisoned = relayed(play.said["keys"] | {"party01": resaid(play.said["keys"]["party01"], share=bytes(32))})
    with pytest.raises(FederationError, match="low order"):
        play.parties["party00"].shares(poisoned)


def test_a_party_refuses_to_send_what_the_federation_would_not_take() -> None:
    of = terms()
    good, _ = update(of, 1)
    bad: list[tuple[dict[str, Any], int, str]] = [
        (update(of, 1, norm=4.1)[0], 1, "goes 4.1 from the model"),
        (good | {"bias": np.array([0, np.nan, 0], np.float32)}, 1, "numbers that are none"),
        (good | {"bias": np.zeros(4, np.float32)}, 1, "the shape"),
        (good | {"bias": np.zeros(3)}, 1, "is of float64"),
        ({"bias": good["bias"]}, 1, "lacks 1"),
        (good, 0, "1 to 16777216 examples"),
        (good, MAX_EXAMPLES + 1, "1 to 16777216 examples"),
    ]
    for arrays, examples, words in bad:
        play = Play(of, updates=dict.fromkeys(names(4), (arrays, examples))).until("mask")
        with pytest.raises(UpdateRefused, match=words):
            play.says("party00", "mask")


def test_no_sum_of_the_largest_updates_wraps() -> None:
    of = terms(64, shapes={"one": (1,)}, largest_ppm=50_000_000)
    for value in (50.0, -50.0):
        vector = weighted({"one": np.array([value], np.float32)}, MAX_EXAMPLES, of)
        arrays, examples = mean(vector * np.uint64(64), 64, of)
        assert arrays["one"].tolist() == [value]
        assert examples == 64 * MAX_EXAMPLES


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        pytest.param([1, 0, 0], "do not add up", id="fewer examples than parties"),
        pytest.param([-5, 0, 0], "do not add up", id="examples under nothing"),
        pytest.param([2 * MAX_EXAMPLES + 1, 0, 0], "do not add up", id="examples without bound"),
        pytest.param([2, 2 * FRACTION, FRACTION], "the mean goes 4.47 from the model", id="too far"),
        pytest.param([2, -(1 << 62), 1 << 62], "from the model", id="noise"),
    ],
)
def test_a_sum_that_no_updates_have_gives_no_mean(numbers: list[int], words: str) -> None:
    of = terms(2, shapes={"one": (2,)})
    with pytest.raises(FederationError, match=words):
        mean(np.array(numbers, "<i8").view("<u8"), 2, of)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"parties": {"a": identity("a").public_key()}, "threshold": 1}, id="one party"),
        pytest.param(
            {"parties": {str(n): identity(str(n)).public_key() for n in range(65)}, "threshold": 44}, id="65"
        ),
        pytest.param({"threshold": 2}, id="two of four, so two lists could be signed"),
        pytest.param({"threshold": 5}, id="more than all"),
        pytest.param(
            {"parties": dict.fromkeys(names(4), identity("a").public_key())}, id="one key under several names"
        ),
        pytest.param(
            {
                "parties": {
                    n: ec.derive_private_key(7 + i, ec.SECP256R1()).public_key()
                    for i, n in enumerate(names(4))
                }
            },
            id="another curve",
        ),
        pytest.param({"number": 0}, id="no round"),
        pytest.param({"largest_ppm": 0}, id="no bound"),
        pytest.param({"shapes": {}}, id="no model"),
        pytest.param({"shapes": {"a": (1 << 30, 2)}}, id="a model without bound"),
    ],
)
def test_terms_under_which_nothing_is_hidden_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        terms(**changes)


def test_of_any_number_of_parties_a_third_cannot_sign_two_lists_or_open_one() -> None:
    for count in range(2, 65):
        threshold = least_threshold(count)
        liars = (count - 1) // 3
        assert threshold <= count
        # Two lists need two thresholds of signatures, and who is honest signs one.
        assert 2 * threshold > count + liars
        # In every sum there are two parties at least that do not work with the aggregator.
        assert threshold - liars >= 2


def test_only_who_has_a_party_s_identity_key_is_that_party() -> None:
    for name, key in (("party00", "party01"), ("stranger", "stranger")):
        with pytest.raises(UsageError, match="not the identity key"):
            MaskedParty(terms(), name, identity(key))


# --- the page


def vector_terms() -> Terms:
    found = VECTORS["terms"]
    identities = {
        name: ec.derive_private_key(int(scalar, 16), ec.SECP384R1()).public_key()
        for name, scalar in VECTORS["identities"].items()
    }
    shapes = {name: tuple(shape) for name, shape in found["shapes"].items()}
    return Terms(**(found | {"parties": identities, "shapes": shapes}))


def test_the_page_has_terms_keys_shares_and_a_vector_that_come_out_here() -> None:
    of = vector_terms()
    assert of.digest().hex() == VECTORS["digest"]
    roster, keys = read_roster(VECTORS["roster"].encode(), of)
    assert roster.hex() == VECTORS["roster_digest"]
    own = {
        name: X25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        for name, key in VECTORS["mask_keys"].items()
    }
    sharing = {
        name: X25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        for name, key in VECTORS["share_keys"].items()
    }
    for name in ("north", "south"):
        assert keys[name].mask == own[name].public_key().public_bytes_raw()
        assert keys[name].share == sharing[name].public_key().public_bytes_raw()
        assert keys[name].seed == commitment(bytes.fromhex(VECTORS["seeds"][name]))
    way = (roster, b"north", b"south")
    sealed = seal_shares(bytes(range(64)), sharing["north"], keys["south"].share, *way)
    assert sealed.hex() == VECTORS["sealed"]
    assert open_shares(sealed, sharing["south"], keys["north"].share, *way) == bytes(range(64))
    difference = {name: np.array(values, np.float32) for name, values in VECTORS["difference"].items()}
    vector = weighted(difference, VECTORS["examples"], of)
    assert vector.tobytes().hex() == VECTORS["vector"]
    add_mask(vector, self_key(bytes.fromhex(VECTORS["seeds"]["north"]), roster, "north"), sign=1)
    add_mask(vector, pair_key(own["north"], keys["south"].mask, roster, "north", "south"), sign=1)
    assert vector.tobytes().hex() == VECTORS["masked"]
    name, head = hear(VECTORS["head"].encode(), Masked, context=roster, terms=of)
    assert (name, head.senders) == ("north", ("north", "south"))
    assert head.vector == hashlib.sha256(vector.tobytes()).digest()
