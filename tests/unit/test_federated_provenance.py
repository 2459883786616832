"""What a model is of: statements that attested processes made, and every way to make one that they did not."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.encoding import decode_json, encode_json
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    FederationError,
    FormatError,
    ManifestError,
    QuorumMissing,
    Superseded,
    UsageError,
    VerificationError,
)
from cloister.federated.agreement import AgreedFederation
from cloister.federated.messages import Vouched
from cloister.federated.progress import PartyState, RoundDone, Share
from cloister.federated.provenance import (
    NAME,
    STATEMENT,
    FilesStated,
    Provenance,
    RoundStated,
    RunStated,
    agreed_chain,
    nonce_of,
    read_provenance,
    run_stated,
    verify_files,
    verify_run,
)
from cloister.manifest.signed import encode_signed
from federation_parts import (
    MILLION,
    NAMES,
    NOW,
    agreed,
    attested,
    evidence,
    federation,
    identity,
    privacy,
    signed,
    vouched,
)

ROUNDS = 2
AGREED = agreed(attested(rounds=ROUNDS, receivers=("north", "south")))
LATER = agreed(attested(rounds=ROUNDS, receivers=("north",), deadline=601))
FIRST, MODEL, RUN = "f1" * 32, "a2" * 32, "5e" * 16


def done(number: int, model: str = "") -> RoundDone:
    share = Share(examples=7, bytes=9, norm=0.5, metrics={"loss": 0.5}, scores={})
    return RoundDone(
        at=NOW, number=number, seconds=1.0, shares={"south": share, "north": share}, refused={"west": "nothing came"},
        scores={}, epsilon=None, model=model or f"a{number}" * 32, down=9,
    )  # fmt: skip


def state(party: str) -> PartyState:
    return PartyState(
        at=NOW, party=party, state="ready", reason="", agent="01" * 32, workload="02" * 32, measurements="03" * 32,
        tee="tdx", until=NOW + 60,
    )  # fmt: skip


def stated(found: AgreedFederation = AGREED, **changes: Any) -> RunStated:
    rounds = [done(number) for number in range(1, ROUNDS + 1)]
    parties = {name: state(name) for name in NAMES}
    return structs.replace(run_stated(found.digest, RUN, FIRST, rounds, parties, at=NOW), **changes)


def files(**changes: Any) -> FilesStated:
    plain: dict[str, Any] = {
        "federation": AGREED.digest, "run": RUN, "party": "north", "model": MODEL, "index": "1d" * 32,
        "signer": "5c" * 32, "at": NOW,
    }  # fmt: skip
    return FilesStated(**(plain | changes))


def by_aggregator(statement: RunStated | bytes, **changes: Any) -> Vouched:
    data = statement if isinstance(statement, bytes) else encode_json(statement)
    return vouched("aggregator", "host", data, **changes)


def by_workload(statement: FilesStated, party: str = "north", **changes: Any) -> Vouched:
    return vouched("workload", party, encode_json(statement), **changes)


@functools.cache
def run() -> RunStated:
    return verify_run(by_aggregator(stated()), AGREED)


def test_a_statement_says_of_a_run_what_its_facts_say() -> None:
    found = stated()
    assert (found.federation, found.run, found.first, found.model, found.at) == (
        AGREED.digest,
        RUN,
        FIRST,
        MODEL,
        NOW,
    )
    assert found.rounds[0] == RoundStated(
        number=1, model="a1" * 32, parties=("north", "south"), refused=("west",)
    )
    assert list(found.parties) == ["north", "south"]  # west gave no update


def test_what_aggregator_and_workload_vouch_for_is_believed() -> None:
    assert run() == stated()
    assert verify_files(by_workload(files()), run(), AGREED) == files()
    south = files(party="south")
    assert verify_files(by_workload(south, "south"), run(), AGREED) == south


def test_a_statement_that_names_who_gave_no_update_is_refused() -> None:
    for parties in (
        stated().parties | {"west": stated().parties["north"]},
        {"north": stated().parties["north"]},
    ):
        with pytest.raises(FederationError, match="other parties than took part"):
            verify_run(by_aggregator(structs.replace(stated(), parties=parties)), AGREED)


OTHER = identity("mallory")
POISONED = "ba" * 32
LAST = structs.replace(stated().rounds[-1], model=POISONED)
SHOWN = encode_json(stated(model=POISONED, rounds=(*stated().rounds[:-1], LAST)))


def forged() -> Vouched:
    """A statement that the aggregator never made, with genuine evidence, which it shows over any nonce to anybody."""
    return Vouched(
        statement=SHOWN, evidence=evidence("aggregator", "host", nonce_of(SHOWN)), key=OTHER.spki,
        signature=OTHER.sign(STATEMENT, SHOWN),
    )  # fmt: skip


def round_two(**changes: Any) -> tuple[RoundStated, ...]:
    one, two = stated().rounds
    return one, structs.replace(two, **changes)


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        pytest.param(forged(), FederationError, "not the one that the evidence binds", id="a statement that was never made"),
        pytest.param(
            structs.replace(forged(), key=identity("host aggregator").spki), FederationError, "a signature is not",
            id="one that was never made, under the aggregator's own key",
        ),
        pytest.param(
            structs.replace(by_aggregator(stated()), statement=SHOWN), BindingMismatch, "another nonce",
            id="an edited statement",
        ),
        pytest.param(
            by_aggregator(SHOWN, signature=by_aggregator(stated()).signature), FederationError, "a signature is not",
            id="an edited statement with fresh evidence",
        ),
        pytest.param(
            by_aggregator(
                stated(), signature=identity("host aggregator").sign("admission", encode_json(stated()))
            ),
            FederationError, "a signature is not", id="signed as something else",
        ),
        pytest.param(
            vouched("workload", "north", encode_json(stated())), VerificationError, "root",
            id="by a party's workload",
        ),
        pytest.param(
            vouched("agent", "host", encode_json(stated())), AppraisalRefused, "rtmr3",
            id="by another role on the aggregator's machine",
        ),
        pytest.param(by_aggregator(stated(LATER)), FederationError, "another federation", id="of another federation"),
        pytest.param(
            by_aggregator(stated(), evidence=evidence("aggregator", "host", bytes(32))), BindingMismatch, "nonce",
            id="with evidence over another nonce",
        ),
        pytest.param(
            by_aggregator(encode_json(files())), FormatError, "the aggregator's statement", id="a statement of another kind",
        ),
        pytest.param(
            by_aggregator(encode_json(stated()) + b" "), FederationError, "another federation", id="in another spelling"
        ),
        pytest.param(by_aggregator(stated(rounds=())), FederationError, "2 rounds", id="of no round"),
        pytest.param(by_aggregator(stated(rounds=stated().rounds[:1])), FederationError, "2 rounds", id="a round missing"),
        pytest.param(
            by_aggregator(stated(rounds=stated().rounds[1:] * 2)), FederationError, "2 rounds", id="a round twice"
        ),
        pytest.param(
            by_aggregator(stated(rounds=stated().rounds[::-1])), FederationError, "2 rounds", id="rounds in another order"
        ),
        pytest.param(
            by_aggregator(stated(rounds=(*stated().rounds, structs.replace(stated().rounds[0], number=3)))),
            FederationError, "2 rounds", id="more rounds than were agreed",
        ),
        pytest.param(
            by_aggregator(stated(rounds=round_two(model="ba" * 32))), FederationError, "not that of the last round",
            id="a model that is not the last round's",
        ),
        pytest.param(
            by_aggregator(stated(at=NOW + 40 * 86_400)), EndorsementError, "has expired", id="long after its evidence"
        ),
        pytest.param(
            by_aggregator(stated(at=NOW - 40 * 86_400)), EndorsementError, "in the future", id="long before its evidence"
        ),
    ],
)  # fmt: skip
def test_of_a_run_nothing_else_is_believed(found: Vouched, error: type[CloisterError], words: str) -> None:
    with pytest.raises(error, match=words):
        verify_run(found, AGREED)


def of_budget(epsilon: int, done_rounds: int) -> tuple[Vouched, AgreedFederation]:
    """A run of so many rounds of five, under a noise of 4 clips: 1.2 is spent after one, 1.7 after two."""
    hidden = privacy(noise_ppm=4 * MILLION, epsilon_ppm=epsilon)
    found = agreed(attested(rounds=5, privacy=hidden))
    rounds = [done(number) for number in range(1, done_rounds + 1)]
    parties = {name: state(name) for name in NAMES}
    return by_aggregator(run_stated(found.digest, RUN, FIRST, rounds, parties, at=NOW)), found


def test_of_a_run_that_its_budget_ended_the_last_round_that_was_paid_for_is_believed() -> None:
    found, federation = of_budget(1_800_000, 2)
    assert [one.number for one in verify_run(found, federation).rounds] == [1, 2]


@pytest.mark.parametrize(
    ("epsilon", "rounds"),
    [
        pytest.param(1_800_000, 1, id="a round that was paid for is missing"),
        pytest.param(100_000, 0, id="no round at all"),
        pytest.param(50 * MILLION, 2, id="a budget for all"),
    ],
)
def test_a_run_that_stopped_within_its_budget_is_not_believed(epsilon: int, rounds: int) -> None:
    with pytest.raises(FederationError, match="did not go through its 5 rounds"):
        verify_run(*of_budget(epsilon, rounds))


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        pytest.param(by_workload(files(run="00" * 16)), FederationError, "another run", id="of another run"),
        pytest.param(by_workload(files(model="ba" * 32)), FederationError, "another model", id="of another model"),
        pytest.param(
            by_workload(files(federation=LATER.digest)), FederationError, "another run", id="of another federation"
        ),
        pytest.param(
            by_workload(files(party="west"), "west"), FederationError, "'west' does not receive", id="by no receiver"
        ),
        pytest.param(
            by_workload(files(party="mallory")), FederationError, "'mallory' does not receive", id="by who is no party"
        ),
        pytest.param(
            by_workload(files(party="south")), VerificationError, "root", id="by a workload of another party than it says"
        ),
        pytest.param(
            vouched("agent", "north", encode_json(files())), AppraisalRefused, "rtmr3", id="by the party's agent"
        ),
        pytest.param(
            structs.replace(by_workload(files()), statement=encode_json(files(index="00" * 32))), BindingMismatch, "nonce",
            id="edited to other files",
        ),
        pytest.param(
            by_workload(files(index="00" * 32), signature=by_workload(files()).signature), FederationError,
            "a signature is not", id="edited to other files, with fresh evidence",
        ),
        pytest.param(by_workload(files(), key=OTHER.spki), FederationError, "not the one", id="under another key"),
        pytest.param(by_aggregator(encode_json(files())), VerificationError, "root", id="by the aggregator"),
        pytest.param(
            vouched("workload", "north", encode_json(stated())), FormatError, "the workload's statement",
            id="the aggregator's statement in its place",
        ),
    ],
)  # fmt: skip
def test_of_files_nothing_else_is_believed(found: Vouched, error: type[CloisterError], words: str) -> None:
    with pytest.raises(error, match=words):
        verify_files(found, run(), AGREED)


HONEST = by_aggregator(stated())


@given(
    part=st.sampled_from(("statement", "key", "signature")),
    place=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_no_flipped_bit_is_believed(part: str, place: int, bit: int) -> None:
    data = bytearray(getattr(HONEST, part))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(CloisterError):
        verify_run(structs.replace(HONEST, **{part: bytes(data)}), AGREED)


def test_the_nonce_of_a_statement_is_its_digest() -> None:
    assert nonce_of(b"statement") == hashlib.sha256(b"statement").digest()


def second(found: AgreedFederation, **changes: Any) -> bytes:
    return encode_signed(signed(federation(version=2, previous=found.digest, **changes)))


PLAIN = agreed(federation())
ONE = encode_signed(PLAIN.signed)


def test_the_federation_in_force_is_at_the_end_of_its_chain() -> None:
    assert agreed_chain([ONE], digest=PLAIN.digest).digest == PLAIN.digest
    found = agreed_chain([ONE, second(PLAIN, rounds=7)], digest=PLAIN.digest)
    assert (found.federation.version, found.federation.rounds) == (2, 7)


@pytest.mark.parametrize(
    ("chain", "error"),
    [
        pytest.param(
            [encode_signed(agreed(federation(rounds=6)).signed)], ManifestError, id="another federation"
        ),
        pytest.param([second(PLAIN)], ManifestError, id="without version 1"),
        pytest.param([ONE, ONE], Superseded, id="version 1 twice"),
        pytest.param([ONE, second(agreed(federation(rounds=6)))], Superseded, id="a successor of another"),
        pytest.param(
            [encode_signed(signed(federation(), "north"))], ManifestError, id="that one party signed"
        ),
        pytest.param([ONE[:-2]], CloisterError, id="cut"),
    ],
)
def test_a_chain_that_does_not_lead_to_it_is_refused(chain: list[bytes], error: type[CloisterError]) -> None:
    with pytest.raises(error):
        agreed_chain(chain, digest=PLAIN.digest)


def test_also_who_pins_nothing_believes_no_federation_that_a_party_did_not_sign() -> None:
    assert agreed_chain([ONE]).digest == PLAIN.digest
    with pytest.raises(QuorumMissing):
        agreed_chain([encode_signed(signed(federation(), "north", "south"))])


def test_provenance_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = Provenance(federation=ONE, previous=(), run=HONEST, files=by_workload(files()))
    (tmp_path / NAME).write_bytes(encode_json(found))
    assert read_provenance(tmp_path) == found
    again = decode_json(encode_json(found), Provenance, what="the provenance")
    assert verify_files(again.files, verify_run(again.run, AGREED), AGREED) == files()


def test_provenance_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_provenance(tmp_path)
    (tmp_path / NAME).write_bytes(b'{"format":"cloister/model-provenance/v2"}')
    with pytest.raises(FormatError):
        read_provenance(tmp_path)
