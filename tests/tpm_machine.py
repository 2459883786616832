"""A machine with a software TPM, from enrolment to an appraised bundle: what the scenarios share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester.tpm import TpmAttester
from cloister.attester.tpm_templates import EkKind
from cloister.encoding import decode_json
from cloister.endorsements.roots import Root, named_root
from cloister.endorsements.tpm import TpmEndorsements, encode_tpm_endorsements
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.eventlog import LaunchEvent
from cloister.evidence.tpm import TpmQuoteWire
from cloister.verifier.tpm_enrolment import EnrolmentAuthority, challenge
from cloister.verifier.trail import Trail
from software_tpm import SoftwareTpm

NOW = int(time.time()) + 12 * 3600
"""swtpm_localca dates its certificates by the clock: these scenarios happen later today than any run of them."""
DAY = 86_400
NONCE = bytes(range(32))
KEYS = b'{"keys":"of this workload"}'
PCRS = (0, 4, 7, 15)
EVENTS = (
    LaunchEvent(name="cloister.config", payload=b"\x01" * 32),
    LaunchEvent(name="cloister.program", payload=b"\x02" * 32),
)


@cache
def enrolment_authority() -> EnrolmentAuthority:
    return EnrolmentAuthority.create("Enrolment of tests", now=NOW - DAY, lifetime=400 * DAY)


def vendor_root(tpm: SoftwareTpm) -> Root:
    return named_root("the TPM's vendor", hashlib.sha256(tpm.authority.chain[-1]).hexdigest())


def enrol(tpm: SoftwareTpm, kind: EkKind | None = None, *, now: int = NOW, lifetime: int = DAY) -> bytes:
    """The whole enrolment; the attestation key's certificate (DER)."""
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        identity = attester.identity(kind)
        enrolment = challenge(
            (identity.ek_certificate, *tpm.authority.chain),
            identity.ak_public,
            roots=(vendor_root(tpm),),
            now=now,
        )
        secret = attester.activate(
            enrolment.credential.credential_blob, enrolment.credential.encrypted_secret, kind
        )
        attester.close()
        return enrolment_authority().certify(enrolment.answer(secret, now=now), now=now, lifetime=lifetime)


def endorse(certificate: bytes, *, revoked: Sequence[int] = ()) -> bytes:
    authority = enrolment_authority()
    crl = authority.revocation_list(revoked, now=NOW - 60, lifetime=DAY)
    return encode_tpm_endorsements(
        TpmEndorsements(ak_chain=(certificate, authority.certificate), crls=(crl,))
    )


@dataclass(frozen=True)
class Machine:
    """A TPM whose attestation key is enrolled."""

    tpm: SoftwareTpm
    certificate: bytes

    @classmethod
    def enrolled(cls, tpm: SoftwareTpm) -> Machine:
        return cls(tpm, enrol(tpm))

    def bundle(
        self,
        *,
        nonce: bytes = NONCE,
        keys: bytes = KEYS,
        launch: tuple[LaunchEvent, ...] = (),
        pcrs: tuple[int, ...] = PCRS,
        bank: str = "sha256",
        endorsements: bytes | None = None,
        **changes: Any,
    ) -> EvidenceBundle:
        """Honest evidence, then ``changes`` made to what travels."""
        with self.tpm.transport() as transport:
            attester = TpmAttester(
                transport,
                endorsements=endorse(self.certificate) if endorsements is None else endorsements,
                pcrs=pcrs,
                bank=bank,
            )
            if launch:
                attester.measure_launch(launch)
            raw = attester.quote(report_data(merkle.root((nonce,)), keys))
            attester.close()
        fields: dict[str, Any] = {
            "tee": raw.tee,
            "quote": raw.quote,
            "key_material": keys,
            "nonce_proof": NonceProof(index=0, size=1, path=()),
            "event_log": raw.event_log,
            "endorsements": raw.endorsements,
        }
        return EvidenceBundle(**{**fields, **changes})


def policy(bundle: EvidenceBundle, *, hardware: str = "", **changes: str) -> Policy:
    """What a relying party pins after it saw ``bundle``; ``changes`` exchange the TOML value of a PCR or field."""
    pcrs = decode_json(bundle.quote, TpmQuoteWire, what="quote").pcrs
    lines = {f"pcrs.{number}": f'["{value.hex()}"]' for number, value in pcrs.items()}
    fields = {"revocation": '"required"', **lines, **changes}
    table = "\n".join(f"{name} = {value}" for name, value in fields.items())
    root = enrolment_authority().root_sha256
    return load_policy(
        f'format = "cloister/policy/v1"\nmax_age_seconds = 300\n[roots]\ntpm = ["{root}"]\n'
        f"[tpm]\n{table}\n{hardware}",
        name="tests",
    )


def judge(
    bundle: EvidenceBundle,
    rules: Policy,
    *,
    nonce: bytes = NONCE,
    now: int = NOW,
    trail: Trail | None = None,
) -> AttestationResult[bytes]:
    return appraise(
        bundle,
        nonce=nonce,
        policy=rules,
        now=now,
        decode=bytes,
        not_after=lambda _: None,
        trail=trail,
    )
