"""What a final model is of: the run, said by the attested aggregator, and the files, said by the workload that wrote them.

Each says it in a statement, signed by the key that its evidence binds; the evidence is over the statement's SHA-256 in place
of a nonce. The signature is what says it, since evidence over any nonce is shown to whoever asks. Both are checked against
the federation that every party signed. Evidence has no time of its own: it is appraised at the time that the statement
names, with the endorsements that it brought then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from cloister.appraisal.policy import Policy
from cloister.channel.verification import appraise_any
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import BudgetSpent, FederationError
from cloister.evidence.bundle import parse_bundle
from cloister.federated.agreement import AgreedFederation, agree_first, agree_successor
from cloister.federated.federation import Federation, Privacy, read_federation
from cloister.federated.identity import check_signature, read_spki
from cloister.federated.messages import Vouched
from cloister.federated.privacy import Budget
from cloister.federated.progress import PartyState, RoundDone
from cloister.manifest.signed import parse_signed
from cloister.manifest.storage import read_bounded

MAX_PROVENANCE: Final = 64 << 20
NAME: Final = "provenance.json"
STATEMENT: Final = "statement"
"""As what a statement is signed."""
SEALED: Final = "model.sealed"


class RoundStated(Record, frozen=True, kw_only=True):
    """One round's result."""

    number: int
    model: str
    parties: tuple[str, ...]
    refused: tuple[str, ...]


class PartyStated(Record, frozen=True, kw_only=True):
    """A party's evidence, by its digest, as it was accepted last."""

    agent: str
    workload: str
    measurements: str


class RunStated(Record, frozen=True, kw_only=True):
    """What the aggregator says."""

    format: Literal["cloister/federation-provenance/v1"] = "cloister/federation-provenance/v1"
    federation: str
    run: str
    first: str
    """SHA-256 of what training began with."""
    rounds: tuple[RoundStated, ...]
    parties: dict[str, PartyStated]
    model: str
    """SHA-256 of the final arrays as safetensors."""
    at: int


class FilesStated(Record, frozen=True, kw_only=True):
    """What the workload says that wrote the model."""

    format: Literal["cloister/federation-model/v1"] = "cloister/federation-model/v1"
    federation: str
    run: str
    party: str
    model: str
    """As in the aggregator's statement."""
    index: str
    """Digest of the signed index of the sealed directory."""
    signer: str
    """Whose signature the index has: a key that was made in the workload for it."""
    at: int


class Provenance(Record, frozen=True, kw_only=True):
    """The file beside the model. Nothing in it is secret."""

    format: Literal["cloister/model-provenance/v1"] = "cloister/model-provenance/v1"
    federation: bytes
    """The signed federation."""
    previous: tuple[bytes, ...]
    """Its predecessors, signed, from version 1 on."""
    run: Vouched
    files: Vouched


def run_stated(
    digest: str,
    run: str,
    first: str,
    rounds: Sequence[RoundDone],
    parties: Mapping[str, PartyState],
    *,
    at: int,
) -> RunStated:
    """Out of the facts of a run that is over; of ``parties`` those whose updates are in it."""
    took_part = {party for one in rounds for party in one.shares}
    return RunStated(
        federation=digest, run=run, first=first,
        rounds=tuple(
            RoundStated(
                number=one.number, model=one.model, parties=tuple(sorted(one.shares)), refused=tuple(sorted(one.refused))
            )
            for one in rounds
        ),
        parties={
            name: PartyStated(agent=one.agent, workload=one.workload, measurements=one.measurements)
            for name, one in sorted(parties.items())
            if name in took_part
        },
        model=rounds[-1].model if rounds else first, at=at,
    )  # fmt: skip


def nonce_of(statement: bytes) -> bytes:
    """The nonce whose evidence vouches for ``statement``."""
    return hashlib.sha256(statement).digest()


def verify_run(vouched: Vouched, agreed: AgreedFederation) -> RunStated:
    """The aggregator's statement. Raises FederationError, and what appraisal raises."""
    stated = decode_json(
        vouched.statement, RunStated, what="the aggregator's statement", limit=MAX_PROVENANCE
    )
    if encode_json(stated) != vouched.statement or stated.federation != agreed.digest:
        raise FederationError("the aggregator's statement is of another federation")
    _appraised(vouched, agreed.aggregator_policies(), stated.at)
    numbers = [one.number for one in stated.rounds]
    if numbers != list(range(1, len(numbers) + 1)) or not _all_rounds(len(numbers), agreed.federation):
        raise FederationError(f"the run did not go through its {agreed.federation.rounds} rounds")
    if stated.parties.keys() != {party for one in stated.rounds for party in one.parties}:
        raise FederationError("the aggregator's statement names other parties than took part in the rounds")
    if stated.rounds[-1].model != stated.model:
        raise FederationError("the model is not that of the last round")
    return stated


def _all_rounds(done: int, federation: Federation) -> bool:
    """Whether there were as many as agreed, or else as many as the privacy budget allows."""
    if done == federation.rounds:
        return True
    of_clients = isinstance(federation.privacy, Privacy) and federation.privacy.of == "clients"
    if not (of_clients and 0 < done < federation.rounds):
        return False
    try:
        Budget(federation).check_next(done)
    except BudgetSpent:
        return True
    return False


def verify_files(vouched: Vouched, run: RunStated, agreed: AgreedFederation) -> FilesStated:
    """The workload's statement, of the same run. Raises as :func:`verify_run`."""
    stated = decode_json(
        vouched.statement, FilesStated, what="the workload's statement", limit=MAX_PROVENANCE
    )
    same = (stated.federation, stated.run, stated.model) == (run.federation, run.run, run.model)
    if encode_json(stated) != vouched.statement or not same:
        raise FederationError("the workload's statement is of another run, or of another model")
    if stated.party not in agreed.federation.receivers:
        raise FederationError(f"{stated.party[:80]!r} does not receive the model")
    _appraised(vouched, agreed.workload_policies(stated.party), stated.at)
    return stated


def agreed_chain(chain: Sequence[bytes], *, digest: str | None = None) -> AgreedFederation:
    """The federation at the end of ``chain``: signed documents from version 1 on, whose first has ``digest``.

    Without ``digest`` the first is taken as it is: for who compares another way. Raises ManifestError.
    """
    first, *later = [parse_signed(one) for one in chain]
    read_federation(first.document)
    agreed = agree_first(first, digest=digest or first.digest)
    for one in later:
        agreed = agree_successor(one, predecessor=agreed)
    return agreed


def read_provenance(folder: Path) -> Provenance:
    """Out of the folder that ``cloister federation`` wrote. Raises UsageError, FormatError."""
    data = read_bounded(folder / NAME, limit=MAX_PROVENANCE, what="the provenance")
    return decode_json(data, Provenance, what="the provenance", limit=MAX_PROVENANCE)


def _appraised(vouched: Vouched, policies: Sequence[Policy], at: int) -> None:
    result = appraise_any(parse_bundle(vouched.evidence), policies, nonce=nonce_of(vouched.statement), now=at)
    key = read_spki(vouched.key, digest=result.require_fresh(at).tls_spki_sha256)
    check_signature(key, vouched.signature, STATEMENT, vouched.statement)
