"""Whether a party may take part: real evidence of its agent and its workload, and every part of them exchanged once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.broker.mesh_request import MAX_CSR, CsrRefused, make_request
from cloister.encoding import encode_json
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    FederationError,
    FormatError,
    ManifestError,
    SignatureRefused,
    VerificationError,
)
from cloister.evidence.bundle import encode_bundle, parse_bundle
from cloister.federated.admission import (
    WORKLOAD,
    Verified,
    signed_parts,
    verify_admission,
    verify_presented,
    vouched_parts,
)
from cloister.federated.messages import Admission, Presented
from federation_parts import NOW, admission, agreed, attested, delegated, evidence, identity, policy_of

NONCE, OLD = bytes(range(32)), bytes(32)
AGREED = agreed(attested())
LATER = agreed(attested(rounds=6))
KEY = identity("north workload").spki
DAY = 86_400


def verify(asked: Admission, **changes: Any) -> Verified:
    plain: dict[str, Any] = {"agreed": AGREED, "party": "north", "nonce": NONCE, "now": NOW}
    return verify_admission(asked, **(plain | changes))


def request(process: str, party: str = "north", application: str = "hospitals") -> bytes:
    return make_request(identity(process).key, workload=party, application=application)


def vouching(by: str, key: bytes = KEY, party: str = "north", digest: str = AGREED.digest) -> bytes:
    return identity(f"{by} agent").sign(WORKLOAD, *vouched_parts(digest, party, key))


def asked(**changes: Any) -> Admission:
    return admission(AGREED, "north", NONCE, **changes)


def test_a_party_whose_agent_and_workload_are_what_all_signed_is_admitted() -> None:
    found = asked(seen=3, checkpoint_key=b"k" * 32)
    verified = verify(found)
    assert (verified.party, verified.workload_key) == ("north", KEY)
    assert verified.agent.keys.tls_spki_sha256 == identity("north agent").digest
    assert verified.agent_digest == hashlib.sha256(found.agent).hexdigest()
    assert verified.workload_digest == hashlib.sha256(found.workload).hexdigest()
    assert verified.until == NOW + 3000  # when the keys in the evidence end


def test_it_is_admitted_until_the_first_of_all_that_ends() -> None:
    soon = asked(delegation=delegated(AGREED, "north", until=NOW + 60))
    assert verify(soon).until == NOW + 60


def in_one_process() -> dict[str, Any]:
    """A workload that shows the agent's key as its own."""
    key = identity("north agent")
    return {
        "workload": evidence("workload", "north", NONCE, key=key),
        "csr": request("north agent"),
        "vouched": vouching("north", key.spki),
    }


def other_key() -> dict[str, Any]:
    """An agent that runs and is genuine, for whose key the party did not sign."""
    return {
        "agent": evidence("agent", "north", NONCE, key=identity("south agent")),
        "agent_key": identity("south agent").spki,
        "vouched": vouching("south"),
    }


Changed = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "by", "error", "words"),
    [
        pytest.param(
            lambda: {"agent": evidence("workload", "north", NONCE, key=identity("north agent"))}, "north",
            AppraisalRefused, "rtmr3 is", id="an agent with another measurement",
        ),
        pytest.param(
            lambda: {"agent": evidence("agent", "south", NONCE, key=identity("north agent"))}, "north",
            VerificationError, "the chain ends in root", id="an agent on a machine of another vendor",
        ),
        pytest.param(
            lambda: {"agent": evidence("agent", "north", OLD)}, "north", BindingMismatch, "another nonce",
            id="an agent's evidence over an old nonce",
        ),
        pytest.param(
            lambda: {"workload": evidence("workload", "north", OLD)}, "north", BindingMismatch, "another nonce",
            id="a workload's evidence over an old nonce",
        ),
        pytest.param(
            lambda: {"workload": evidence("agent", "north", NONCE, key=identity("north workload"))}, "north",
            AppraisalRefused, "rtmr3 is", id="a workload with another measurement",
        ),
        pytest.param(
            lambda: {"workload": evidence("workload", "south", NONCE, key=identity("north workload"))}, "north",
            VerificationError, "the chain ends in root", id="a workload on a machine of another vendor",
        ),
        pytest.param(
            lambda: {"delegation": delegated(AGREED, "south", key=identity("north agent"))}, "north",
            SignatureRefused, "may not sign", id="the word of another party",
        ),
        pytest.param(
            lambda: {"delegation": delegated(AGREED, "north", key=identity("south agent"))}, "north",
            FederationError, "another agent may act", id="a word for another agent's key",
        ),
        pytest.param(
            lambda: {"delegation": delegated(LATER, "north")}, "north", FederationError, "another federation",
            id="a word for another version",
        ),
        pytest.param(
            lambda: {"delegation": delegated(AGREED, "north", until=NOW)}, "north", FederationError, "is over",
            id="a word whose time is over",
        ),
        pytest.param(lambda: {"delegation": b"{}"}, "north", ManifestError, "signed document", id="no word at all"),
        pytest.param(other_key, "south", FederationError, "another agent may act", id="an agent with another key"),
        pytest.param(
            lambda: {"agent_key": identity("south agent").spki}, "north", FederationError, "not the one",
            id="a key that the agent's evidence does not bind",
        ),
        pytest.param(dict, "south", FederationError, "a signature is not", id="signed by another party's agent"),
        pytest.param(
            lambda: {"csr": request("south workload"), "vouched": vouching("north", identity("south workload").spki)},
            "north", FederationError, "not the one", id="a certificate for another key than the workload's",
        ),
        pytest.param(
            lambda: {"csr": request("north workload", "south")}, "north", CsrRefused, "not the workload's own",
            id="a certificate in another party's name",
        ),
        pytest.param(
            lambda: {"csr": request("north workload", application="banks")}, "north", CsrRefused, "not the workload's",
            id="a certificate for another federation",
        ),
        pytest.param(
            lambda: {"csr": request("north workload") + bytes(MAX_CSR)}, "north", CsrRefused, "at most",
            id="a request over its bound",
        ),
        pytest.param(lambda: {"csr": b""}, "north", CsrRefused, "no certificate request", id="no request"),
        pytest.param(in_one_process, "north", FederationError, "they are one process", id="agent and workload in one"),
        pytest.param(
            lambda: {"vouched": vouching("south")}, "north", FederationError, "a signature is not",
            id="a workload for which another agent vouches",
        ),
        pytest.param(
            lambda: {"vouched": vouching("north", identity("south workload").spki)}, "north", FederationError,
            "a signature is not", id="an agent that vouches for another workload",
        ),
        pytest.param(
            lambda: {"vouched": vouching("north", party="south")}, "north", FederationError, "a signature is not",
            id="an agent that vouches in another party's name",
        ),
        pytest.param(
            lambda: {"vouched": vouching("north", digest=LATER.digest)}, "north", FederationError, "a signature is not",
            id="an agent that vouches in another version",
        ),
        pytest.param(lambda: {"agent": b"{}"}, "north", FormatError, "evidence bundle", id="no evidence of the agent"),
        pytest.param(lambda: {"workload": b""}, "north", FormatError, "evidence bundle", id="no evidence of the workload"),
        pytest.param(lambda: {"nonce": bytes(31)}, "north", FederationError, "nonce", id="a nonce that nobody can answer"),
        pytest.param(lambda: {"seen": -1}, "north", FederationError, "number of a round", id="a round before the first"),
        pytest.param(
            lambda: {"checkpoint_key": b"short"}, "north", FederationError, "32 bytes", id="a key that seals nothing",
        ),
    ],
)  # fmt: skip
def test_a_party_that_may_not_take_part_is_refused(
    change: Changed, by: str, error: type[CloisterError], words: str
) -> None:
    with pytest.raises(error) as refusal:
        verify(asked(by=by, **change()))
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def again() -> bytes:
    """Evidence of the same agent over the same nonce, in other bytes."""
    bundle = parse_bundle(evidence("agent", "north", NONCE))
    return b" " + encode_json(bundle)


EXCHANGED: dict[str, Callable[[], Any]] = {
    "session": lambda: "00" * 32,
    "workload": lambda: evidence("workload", "north", NONCE, key=identity("another workload")),
    "csr": lambda: request("another workload"),
    "vouched": lambda: vouching("north", identity("another workload").spki),
    "nonce": lambda: OLD[:-1] + b"\x01",
    "checkpoint_key": lambda: b"k" * 32,
    "seen": lambda: 7,
    "delegation": lambda: delegated(AGREED, "north", until=NOW + 60),
    "agent": again,
}


@pytest.mark.parametrize("name", sorted(EXCHANGED))
def test_nothing_of_an_admission_is_exchanged_after_the_agent_signed_it(name: str) -> None:
    """The agent's evidence beside another workload's is what the signature is for (3)."""
    honest = asked()
    with pytest.raises(FederationError, match="a signature is not"):
        verify(structs.replace(honest, **{name: EXCHANGED[name]()}))


def test_every_field_but_the_signature_is_signed() -> None:
    assert EXCHANGED.keys() | {"agent_key", "signature"} == set(Admission.__struct_fields__)
    assert len(signed_parts(asked())) == len(Admission.__struct_fields__) - 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"nonce": OLD}, BindingMismatch, id="replayed in a later session"),
        pytest.param({"party": "south"}, CloisterError, id="in a session of another party"),
        pytest.param({"agreed": LATER}, FederationError, id="to an aggregator of another version"),
        pytest.param({"now": NOW + 3000}, CloisterError, id="after the keys in its evidence ended"),
        pytest.param({"now": NOW + 2 * DAY}, CloisterError, id="two days later"),
        pytest.param({"party": "mallory"}, ManifestError, id="for who is no party"),
    ],
)
def test_an_honest_admission_counts_nowhere_else_and_at_no_other_time(
    changes: dict[str, Any], error: type[CloisterError]
) -> None:
    with pytest.raises(error):
        verify(asked(), **changes)


def test_a_federation_that_pins_another_program_admits_nobody_of_this_one() -> None:
    parties = AGREED.federation.parties
    north = structs.replace(parties["north"], agent=(policy_of("workload", "north"),))
    other = agreed(attested(parties=parties | {"north": north}))
    with pytest.raises(AppraisalRefused):
        verify(admission(other, "north", NONCE), agreed=other)


@functools.cache
def honest() -> Admission:
    return asked()


@given(
    name=st.sampled_from(("agent", "workload")),
    part=st.sampled_from(("key_material", "event_log")),
    place=st.integers(0, 1 << 16),
    bit=st.integers(0, 7),
)
def test_no_flipped_bit_of_keys_or_log_is_admitted(name: str, part: str, place: int, bit: int) -> None:
    """Also where the agent itself signs what was flipped."""
    bundle = parse_bundle(getattr(honest(), name))
    data = bytearray(getattr(bundle, part))
    data[place % len(data)] ^= 1 << bit
    flipped = encode_bundle(structs.replace(bundle, **{part: bytes(data)}))
    unsigned = structs.replace(honest(), **{name: flipped})
    signature = identity("north agent").sign("admission", *signed_parts(unsigned))
    with pytest.raises(CloisterError):
        verify(structs.replace(unsigned, signature=signature))


def presented(**changes: Any) -> Presented:
    plain: dict[str, Any] = {
        "evidence": evidence("agent", "north", NONCE),
        "agent_key": identity("north agent").spki,
        "delegation": delegated(AGREED, "north"),
        "workload_key": KEY,
        "vouched": vouching("north"),
    }
    return Presented(**(plain | changes))


def show(found: Presented, **changes: Any) -> Any:
    plain: dict[str, Any] = {"agreed": AGREED, "party": "north", "nonce": NONCE, "now": NOW}
    return verify_presented(found, **(plain | changes))


def test_another_partys_agent_is_verified_by_this_one() -> None:
    assert show(presented()).keys.tls_spki_sha256 == identity("north agent").digest


@pytest.mark.parametrize(
    ("change", "asked_as", "error"),
    [
        pytest.param(
            lambda: {"evidence": evidence("workload", "north", NONCE, key=identity("north agent"))}, {}, CloisterError,
            id="an agent with another measurement",
        ),
        pytest.param(
            lambda: {"evidence": evidence("agent", "north", OLD)}, {}, BindingMismatch,
            id="evidence that answers somebody else's nonce",
        ),
        pytest.param(dict, {"party": "south"}, CloisterError, id="shown as another party's"),
        pytest.param(
            lambda: {"delegation": delegated(AGREED, "north", key=identity("south agent"))}, {}, FederationError,
            id="a word for another agent",
        ),
        pytest.param(
            lambda: {"agent_key": identity("south agent").spki}, {}, FederationError, id="another key beside it",
        ),
        pytest.param(
            lambda: {"workload_key": identity("south workload").spki}, {}, FederationError,
            id="a workload that the aggregator put in its place",
        ),
        pytest.param(lambda: {"vouched": vouching("south")}, {}, FederationError, id="vouched for by another agent"),
        pytest.param(
            lambda: {"workload_key": b"no key", "vouched": vouching("north", b"no key")}, {}, FederationError,
            id="a workload key that is none",
        ),
        pytest.param(dict, {"now": NOW + 3000}, CloisterError, id="after its keys ended"),
    ],
)  # fmt: skip
def test_another_partys_agent_that_is_not_what_all_signed_is_refused(
    change: Changed, asked_as: dict[str, Any], error: type[CloisterError]
) -> None:
    with pytest.raises(error):
        show(presented(**change()), **asked_as)
