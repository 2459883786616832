"""What a party's people say to the aggregator: that it leaves, or that they want to see. By their key, now and here."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, ManifestError, QuorumMissing, SignatureRefused
from cloister.federated.messages import Departure, Inquiry
from cloister.federated.party_words import MAX_WORD, SECONDS, accept_word, say
from cloister.manifest.signed import Signed, encode_signed, parse_signed, sign
from federation_parts import NAMES, NOW, agreed, federation, owner

AGREED, LATER = agreed(federation()), agreed(federation(rounds=6))


def word(kind: Any = Departure, **changes: Any) -> Any:
    return kind(**({"federation": AGREED.digest, "party": "north", "at": NOW} | changes))


def accept(signed: Signed, kind: Any = Departure, **changes: Any) -> Any:
    return accept_word(kind, signed, **({"agreed": AGREED, "now": NOW} | changes))


@given(
    kind=st.sampled_from((Departure, Inquiry)),
    party=st.sampled_from(NAMES),
    late=st.integers(-SECONDS, SECONDS),
)
def test_a_partys_word_is_accepted_while_it_is_of_now(kind: Any, party: str, late: int) -> None:
    said = say(kind, AGREED, party=party, signer=owner(party), now=NOW)
    travelled = parse_signed(encode_signed(said))
    assert accept(travelled, kind, now=NOW + late) == word(kind, party=party)


GOOD = say(Departure, AGREED, party="north", signer=owner("north"), now=NOW)


@pytest.mark.parametrize(
    ("signed", "asked", "error", "words"),
    [
        pytest.param(GOOD, {"now": NOW + SECONDS + 1}, FederationError, "not of now", id="an old one, said again"),
        pytest.param(GOOD, {"now": NOW - SECONDS - 1}, FederationError, "not of now", id="of the future"),
        pytest.param(GOOD, {"agreed": LATER}, FederationError, "another federation", id="of another federation"),
        pytest.param(GOOD, {"kind": Inquiry}, ManifestError, "form it should", id="a departure as an inquiry"),
        pytest.param(
            sign("inquiry", encode_json(word()), [owner("north")]), {}, SignatureRefused, "does not hold",
            id="a departure that was signed as an inquiry",
        ),
        pytest.param(
            sign("departure", encode_json(word(Inquiry)), [owner("north")]), {}, ManifestError, "form it should",
            id="an inquiry that was signed as a departure",
        ),
        pytest.param(
            sign("delegation", encode_json(word()), [owner("north")]), {}, SignatureRefused, "does not hold",
            id="signed as the word for an agent",
        ),
        pytest.param(
            sign("departure", encode_json(word()), [owner("south")]), {}, SignatureRefused, "may not sign",
            id="by another party's key",
        ),
        pytest.param(
            sign("departure", encode_json(word(party="south")), [owner("north")]), {}, SignatureRefused, "may not sign",
            id="in another party's name",
        ),
        pytest.param(
            sign("departure", encode_json(word(party="mallory")), [owner("mallory")]), {}, FederationError,
            "another federation", id="of who is no party",
        ),
        pytest.param(
            sign("departure", encode_json(word()), [owner("north"), owner("south")]), {}, SignatureRefused,
            "may not sign", id="signed by another party too",
        ),
        pytest.param(
            Signed(document=encode_json(word()), signatures=()), {}, QuorumMissing, "none of them", id="signed by nobody"
        ),
        pytest.param(
            Signed(document=encode_json(word(at=NOW + 1)), signatures=GOOD.signatures), {}, SignatureRefused,
            "does not hold", id="edited to a later time",
        ),
        pytest.param(
            sign("departure", encode_json(word()) + b" ", [owner("north")]), {}, ManifestError, "canonical",
            id="in another spelling",
        ),
        pytest.param(
            sign("departure", b" " * (MAX_WORD + 1), [owner("north")]), {}, ManifestError, "over its bound", id="too long"
        ),
    ],
)  # fmt: skip
def test_a_word_that_does_not_count_is_refused(
    signed: Signed, asked: dict[str, Any], error: type[CloisterError], words: str
) -> None:
    with pytest.raises(error) as refusal:
        accept(signed, **asked)
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_edit_after_signing_holds(place: int, bit: int) -> None:
    document = bytearray(GOOD.document)
    document[place % len(document)] ^= 1 << bit
    with pytest.raises(CloisterError):
        accept(Signed(document=bytes(document), signatures=GOOD.signatures))


@pytest.mark.parametrize(
    ("party", "key"),
    [
        pytest.param("north", "south", id="another party's key"),
        pytest.param("mallory", "mallory", id="who is no party"),
    ],
)
def test_what_nobody_would_accept_is_not_said(party: str, key: str) -> None:
    with pytest.raises(FederationError, match="is not that of"):
        say(Departure, AGREED, party=party, signer=owner(key), now=NOW)
