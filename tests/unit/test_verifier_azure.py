"""Azure's form: AMD vouches for the report, the report for the runtime data, the data for the key, the key for the quote."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from cloister.endorsements.amd import encode_snp_endorsements
from cloister.endorsements.roots import simulated_root
from cloister.errors import CloisterError
from cloister.evidence.hcl import encode_evidence
from cloister.verifier.azure import verify
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail
from handmade_hcl import hcl_report, jwk, processor, runtime_data, sealed_report
from handmade_tpm import AK_ATTRIBUTES, EXTRA, NOW, PCRS, Quote, ec_key, rsa_key

AK = rsa_key("hcl ak")
QUOTE = Quote(key=AK, scheme="rsassa")
DATA = runtime_data(AK.public_key())


def claims(evidence: bytes, *, trail: Trail | None = None) -> Claims:
    return verify(
        evidence,
        encode_snp_endorsements(processor().endorsements(NOW)),
        roots=(simulated_root(processor().root_sha256),),
        now=NOW,
        revocation_required=True,
        trail=trail,
    )


def honest() -> bytes:
    return encode_evidence(hcl_report=sealed_report(DATA), quote=QUOTE.wire)


def test_a_guest_is_attested_through_its_vtpm() -> None:
    trail = Trail()
    found = claims(honest(), trail=trail)
    assert (found.tee, found.report_data, found.simulated) == ("az-snp-vtpm", EXTRA, True)
    assert found.measurements["pcr7"] == PCRS[7]
    assert len(found.measurements["measurement"]) == 48
    assert set(found.hardware) >= {"chip_id", "ek_sha256"}
    assert found.details["vm-configuration.secure-boot"] == "true"
    assert {"HCL report and quote", "runtime data", "vTPM attestation key", "quote signature"} <= {
        check.name for check in trail.passed
    }


def _swapped_key() -> bytes:
    """The host's own key in the runtime data, beside the genuine report."""
    theirs = rsa_key("thief")
    report = processor().sign(processor().report(hashlib.sha256(DATA).digest() + bytes(32)))
    return encode_evidence(
        hcl_report=hcl_report(runtime_data(theirs.public_key()), report),
        quote=Quote(key=theirs, scheme="rsassa").wire,
    )


ATTACKS = {
    "the key in the runtime data exchanged": (_swapped_key, "does not seal this runtime data"),
    "a report of a guest without paravisor, with report data of its own": (
        lambda: encode_evidence(hcl_report=sealed_report(DATA, report_data=bytes(64)), quote=QUOTE.wire),
        "does not seal this runtime data",
    ),
    "more than the digest in the report data": (
        lambda: encode_evidence(
            hcl_report=sealed_report(DATA, report_data=hashlib.sha256(DATA).digest() + b"\1" * 32),
            quote=QUOTE.wire,
        ),
        "does not seal this runtime data",
    ),
    "a quote of another vTPM": (
        lambda: encode_evidence(
            hcl_report=sealed_report(DATA), quote=Quote(key=rsa_key("thief"), scheme="rsassa").wire
        ),
        "not the one that the SEV-SNP report vouches for",
    ),
    "a quote by the endorsement key's name": (
        lambda: encode_evidence(
            hcl_report=sealed_report(
                runtime_data(
                    AK.public_key(),
                    keys=[jwk(AK.public_key()), jwk(rsa_key("thief").public_key(), "HCLEkPub")],
                )
            ),
            quote=Quote(key=rsa_key("thief"), scheme="rsassa").wire,
        ),
        "not the one that the SEV-SNP report vouches for",
    ),
    "an elliptic key's quote": (
        lambda: encode_evidence(hcl_report=sealed_report(DATA), quote=Quote(key=ec_key("ak")).wire),
        "not the one that the SEV-SNP report vouches for",
    ),
    "a key that also decrypts": (
        lambda: encode_evidence(
            hcl_report=sealed_report(DATA), quote=QUOTE.bent(attributes=AK_ATTRIBUTES | 1 << 17).wire
        ),
        "may also decrypt",
    ),
    "a quote whose signature is another's": (
        lambda: _signature_of(QUOTE.bent(extra=bytes(32))),
        "signature does not verify",
    ),
}


def _signature_of(other: Quote) -> bytes:
    document = json.loads(honest())
    document["quote"]["signature"] = json.loads(encode_evidence(hcl_report=b"", quote=other.wire))["quote"][
        "signature"
    ]
    return json.dumps(document).encode()


@pytest.mark.parametrize("attack", ATTACKS)
def test_evidence_of_another_guest_is_refused(attack: str) -> None:
    make, reason = ATTACKS[attack]
    with pytest.raises(CloisterError, match=reason):
        claims(make())


def test_a_flipped_bit_in_the_hcl_report_is_refused() -> None:
    honest_report, quote = sealed_report(DATA), QUOTE.wire
    claims(encode_evidence(hcl_report=honest_report, quote=quote))
    chance = random.Random(5)
    for at in sorted({*range(40), *chance.sample(range(len(honest_report)), 150), *range(1216, 1236)}):
        altered = bytearray(honest_report)
        altered[at] ^= 1 << chance.randrange(8)
        evidence = encode_evidence(hcl_report=bytes(altered), quote=quote)
        with pytest.raises(CloisterError):
            claims(evidence)
