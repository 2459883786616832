"""Named attacks on TPM evidence and enrolment, against real (software) TPMs: each is refused for its own reason."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509

from cloister.attester.tpm import TpmAttester
from cloister.attester.tpm_commands import ENDORSEMENT, Tpm
from cloister.attester.tpm_templates import AK_TEMPLATE
from cloister.encoding import decode_json, encode_json
from cloister.endorsements.roots import named_root
from cloister.errors import (
    AppraisalRefused,
    AttesterError,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EventLogMismatch,
    EvidenceError,
    VerificationError,
)
from cloister.evidence.bundle import EvidenceBundle
from cloister.evidence.eventlog import LaunchEvent, encode_event_log
from cloister.evidence.tpm import TpmQuoteWire
from cloister.evidence.tpm_structures import RESTRICTED, parse_public
from cloister.verifier.tpm import verify
from cloister.verifier.tpm_enrolment import ANSWER_SECONDS, Enrolment, challenge
from handmade_tpm import ec_key, public_area
from software_tpm import SoftwareTpm, software_tpms
from tpm_machine import DAY, EVENTS, KEYS, NONCE, NOW, Machine, endorse, enrol, judge, policy, vendor_root

ATTRIBUTES_AT = 4
"""Where a TPMT_PUBLIC has its attributes."""


@dataclass(frozen=True)
class World:
    """Two TPMs of one vendor, one of another."""

    ours: Machine
    neighbour: SoftwareTpm
    stranger: SoftwareTpm


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with software_tpms(3, authorities=2) as (first, stranger, second):
        yield World(Machine.enrolled(first), second, stranger)


@pytest.fixture(autouse=True)
def _fresh_boot(world: World) -> None:
    world.ours.tpm.reboot()


def _wire(bundle: EvidenceBundle, **changes: Any) -> bytes:
    wire = decode_json(bundle.quote, TpmQuoteWire, what="quote")
    fields = {name: getattr(wire, name) for name in ("attest", "signature", "ak_public", "pcrs")}
    return encode_json(TpmQuoteWire(**{**fields, **changes}))


def _bent(bundle: EvidenceBundle, **changes: Any) -> EvidenceBundle:
    names = ("tee", "quote", "key_material", "nonce_proof", "event_log", "firmware_log", "endorsements")
    return EvidenceBundle(**{**{name: getattr(bundle, name) for name in names}, **changes})


def _extend(tpm: SoftwareTpm, pcr: int, digest: bytes = b"\x55" * 32) -> None:
    with tpm.transport() as transport:
        Tpm(transport).extend(pcr, {"sha256": digest})


def stale_nonce(world: World) -> None:
    bundle = world.ours.bundle()
    judge(bundle, policy(bundle), nonce=b"\x77" * 32)


def keys_exchanged_after_quoting(world: World) -> None:
    bundle = world.ours.bundle()
    judge(_bent(bundle, key_material=b'{"keys":"of the thief"}'), policy(bundle))


def qualifying_data_altered(world: World) -> None:
    bundle, other = world.ours.bundle(), world.ours.bundle(nonce=b"\x77" * 32)
    attest = decode_json(bundle.quote, TpmQuoteWire, what="quote").attest
    judge(_bent(other, quote=_wire(other, attest=attest)), policy(bundle))


def quote_of_another_tpm(world: World) -> None:
    neighbour = Machine(world.neighbour, world.ours.certificate)
    judge(neighbour.bundle(), policy(world.ours.bundle()))


def quote_of_another_tpm_under_our_public_key(world: World) -> None:
    ours = world.ours.bundle()
    theirs = Machine(world.neighbour, world.ours.certificate).bundle()
    public = decode_json(ours.quote, TpmQuoteWire, what="quote").ak_public
    judge(_bent(theirs, quote=_wire(theirs, ak_public=public)), policy(ours))


def value_altered(world: World) -> None:
    bundle = world.ours.bundle()
    pcrs = decode_json(bundle.quote, TpmQuoteWire, what="quote").pcrs
    judge(_bent(bundle, quote=_wire(bundle, pcrs={**pcrs, "7": b"\x01" * 32})), policy(bundle))


def attest_altered(world: World) -> None:
    bundle = world.ours.bundle()
    attest = bytearray(decode_json(bundle.quote, TpmQuoteWire, what="quote").attest)
    attest[6 + 2 + 34 + 2 + 32] ^= 1  # the clock, behind signer and qualifying data
    judge(_bent(bundle, quote=_wire(bundle, attest=bytes(attest))), policy(bundle))


def extended_after_enrolment(world: World) -> None:
    rules = policy(world.ours.bundle())
    _extend(world.ours.tpm, 7)
    judge(world.ours.bundle(), rules)


def quote_without_the_pcr_that_changed(world: World) -> None:
    rules = policy(world.ours.bundle())
    _extend(world.ours.tpm, 7)
    judge(world.ours.bundle(pcrs=(0, 4, 15)), rules)


def quote_of_a_pcr_that_nobody_decided(world: World) -> None:
    judge(world.ours.bundle(pcrs=(0, 4, 7, 9, 15)), policy(world.ours.bundle()))


def _launched(world: World, **changes: Any) -> tuple[EvidenceBundle, Any]:
    bundle = world.ours.bundle(launch=EVENTS)
    rules = policy(
        bundle,
        **{
            "pcrs.15": '"any"',
            "events": '{ "cloister.config" = ["%s"], "cloister.program" = "any" }' % ("01" * 32),
        },
    )
    return _bent(bundle, **changes), rules


def event_log_lies(world: World) -> None:
    lie = LaunchEvent(name="cloister.program", payload=b"\x03" * 32)
    judge(*_launched(world, event_log=encode_event_log((EVENTS[0], lie))))


def event_log_cut(world: World) -> None:
    judge(*_launched(world, event_log=encode_event_log(EVENTS[:1])))


def event_log_reordered(world: World) -> None:
    judge(*_launched(world, event_log=encode_event_log(EVENTS[::-1])))


def event_log_left_out(world: World) -> None:
    judge(*_launched(world, event_log=b""))


def another_workload_launched(world: World) -> None:
    _, rules = _launched(world)
    world.ours.tpm.reboot()
    other = (LaunchEvent(name="cloister.config", payload=b"\x09" * 32), EVENTS[1])
    judge(world.ours.bundle(launch=other), rules)


def something_extended_before_the_launch(world: World) -> None:
    _extend(world.ours.tpm, 15)
    world.ours.bundle(launch=EVENTS)


def certificate_expired(world: World) -> None:
    bundle = world.ours.bundle()
    judge(bundle, policy(bundle), now=NOW + 2 * DAY)


def certificate_revoked(world: World) -> None:
    bundle = world.ours.bundle()
    serial = x509.load_der_x509_certificate(world.ours.certificate).serial_number
    judge(_bent(bundle, endorsements=endorse(world.ours.certificate, revoked=[serial])), policy(bundle))


def revocation_list_left_out(world: World) -> None:
    bundle = world.ours.bundle()
    document = json.loads(bundle.endorsements)
    document["crls"] = []
    judge(_bent(bundle, endorsements=json.dumps(document).encode()), policy(bundle))


def clock_after_an_unclean_power_off(world: World) -> None:
    # The flag stays down for over an hour, so this is a machine of its own.
    machine = Machine.enrolled(world.stranger)
    rules = policy(machine.bundle())
    machine.tpm.reboot(clean=False)
    judge(machine.bundle(), rules)


def another_machine_than_those_listed(world: World) -> None:
    certificate = enrol(world.neighbour)
    ours = world.ours.bundle()
    own = judge(ours, policy(ours)).claims.hardware["ek_sha256"]
    rules = policy(ours, hardware=f'[hardware]\nek_sha256 = ["{own}"]\n')
    judge(Machine(world.neighbour, certificate).bundle(), rules)


def firmware_log_that_does_not_replay(world: World) -> None:
    bundle = world.ours.bundle()
    judge(_bent(bundle, firmware_log=firmware_log(4, b"\x66" * 32)), policy(bundle))


def firmware_log(pcr: int, digest: bytes, data: bytes = b"what was measured") -> bytes:
    """A TCG log (crypto-agile) of one event in bank SHA-256."""

    def u(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, "little")

    spec = b"Spec ID Event03\0" + u(0) + b"\0\x02\0\x02" + u(1) + u(0x000B, 2) + u(32, 2) + b"\0"
    head = u(0) + u(3) + bytes(20) + u(len(spec)) + spec
    return head + u(pcr) + u(13) + u(1) + u(0x000B, 2) + digest + u(len(data)) + data


EVIDENCE: dict[Callable[[World], None], tuple[type[CloisterError], str]] = {
    stale_nonce: (BindingMismatch, "binds other keys, devices or another nonce"),
    keys_exchanged_after_quoting: (BindingMismatch, "binds other keys, devices or another nonce"),
    qualifying_data_altered: (VerificationError, "signature does not verify"),
    quote_of_another_tpm: (VerificationError, "certificate is another key's"),
    quote_of_another_tpm_under_our_public_key: (VerificationError, "signature does not verify"),
    value_altered: (EvidenceError, "not those that the TPM quoted"),
    attest_altered: (VerificationError, "signature does not verify"),
    extended_after_enrolment: (AppraisalRefused, "PCR 7 is .*, which the policy does not list"),
    quote_without_the_pcr_that_changed: (
        AppraisalRefused,
        "PCR 7 is listed in the policy, and was not quoted",
    ),
    quote_of_a_pcr_that_nobody_decided: (
        AppraisalRefused,
        "PCR 9 was quoted, and the policy does not decide",
    ),
    event_log_lies: (EventLogMismatch, "does not replay to the quoted pcr15"),
    event_log_cut: (EventLogMismatch, "does not replay to the quoted pcr15"),
    event_log_reordered: (EventLogMismatch, "does not replay to the quoted pcr15"),
    event_log_left_out: (AppraisalRefused, "'cloister.config' is required and did not happen"),
    another_workload_launched: (AppraisalRefused, "launch event 'cloister.config' is 0909"),
    something_extended_before_the_launch: (AttesterError, "these launch events do not lead to"),
    certificate_expired: (EndorsementError, "ended at"),
    certificate_revoked: (VerificationError, "was revoked by Enrolment of tests"),
    revocation_list_left_out: (EndorsementError, "no revocation list of Enrolment of tests"),
    clock_after_an_unclean_power_off: (AppraisalRefused, "clock may have gone back"),
    another_machine_than_those_listed: (AppraisalRefused, "ek_sha256 is .*, which the policy does not list"),
    firmware_log_that_does_not_replay: (EventLogMismatch, "does not replay"),
}


@pytest.mark.parametrize("attack", EVIDENCE, ids=lambda attack: attack.__name__.replace("_", " "))
def test_evidence_of_a_tpm_is_refused_for_its_own_reason(
    world: World, attack: Callable[[World], None]
) -> None:
    error, reason = EVIDENCE[attack]
    with pytest.raises(error, match=reason):
        attack(world)


def test_honest_evidence_passes_where_the_attacks_do_not(world: World) -> None:
    bundle, rules = _launched(world)
    assert judge(bundle, rules).keys == KEYS
    world.ours.tpm.reboot()
    _extend(world.ours.tpm, 4, b"\x66" * 32)
    logged = _bent(world.ours.bundle(), firmware_log=firmware_log(4, b"\x66" * 32))
    found = judge(logged, policy(logged), nonce=NONCE)
    assert [(event.register, event.digest) for event in found.claims.measured_events] == [(4, b"\x66" * 32)]


# Enrolment


def _identity(tpm: SoftwareTpm) -> tuple[bytes, bytes]:
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        identity = attester.identity()
        attester.close()
        return identity.ek_certificate, identity.ak_public


def _activate(tpm: SoftwareTpm, enrolment: Enrolment) -> bytes:
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        try:
            return attester.activate(
                enrolment.credential.credential_blob, enrolment.credential.encrypted_secret
            )
        finally:
            attester.close()


def _challenge(ek_of: SoftwareTpm, public: bytes, *, ek: bytes | None = None) -> Enrolment:
    own, _ = _identity(ek_of)
    chain = (own if ek is None else ek, *ek_of.authority.chain)
    return challenge(chain, public, roots=(vendor_root(ek_of),), now=NOW)


def test_an_attestation_key_that_is_not_in_the_tpm_of_that_endorsement_key_is_not_activated(
    world: World,
) -> None:
    _, theirs = _identity(world.neighbour)
    enrolment = _challenge(world.ours.tpm, theirs)
    for tpm in (world.ours.tpm, world.neighbour):
        with pytest.raises(AttesterError, match="made for another key or another TPM"):
            _activate(tpm, enrolment)


def test_a_key_in_software_is_not_activated(world: World) -> None:
    """Its owner can show any attributes; but no TPM has a key of that name."""
    enrolment = _challenge(world.ours.tpm, public_area(ec_key("software")))
    with pytest.raises(AttesterError, match="made for another key or another TPM"):
        _activate(world.ours.tpm, enrolment)


def test_an_unrestricted_key_of_the_tpm_is_not_challenged(world: World) -> None:
    attributes = int.from_bytes(AK_TEMPLATE[ATTRIBUTES_AT : ATTRIBUTES_AT + 4], "big") & ~RESTRICTED
    template = AK_TEMPLATE[:ATTRIBUTES_AT] + attributes.to_bytes(4, "big") + AK_TEMPLATE[ATTRIBUTES_AT + 4 :]
    with world.ours.tpm.transport() as transport:
        raw = Tpm(transport)
        handle, public = raw.create_primary(ENDORSEMENT, template)
        try:
            with pytest.raises(EvidenceError, match="not restricted"):
                challenge(
                    (raw.read_nv(0x01C00016), *world.ours.tpm.authority.chain),
                    public,
                    roots=(vendor_root(world.ours.tpm),),
                    now=NOW,
                )
            # Lying about the attribute gives the key another name, for which the credential does not open.
            shown = public[:ATTRIBUTES_AT] + AK_TEMPLATE[ATTRIBUTES_AT : ATTRIBUTES_AT + 4]
            shown += public[ATTRIBUTES_AT + 4 :]
            parse_public(shown).require_attestation_key()
            credential = challenge(
                (raw.read_nv(0x01C00016), *world.ours.tpm.authority.chain),
                shown,
                roots=(vendor_root(world.ours.tpm),),
                now=NOW,
            ).credential
            with pytest.raises(AttesterError, match="made for another key or another TPM"):
                raw.activate(
                    handle,
                    0x81010016,
                    credential.credential_blob,
                    credential.encrypted_secret,
                    by_policy=False,
                )
        finally:
            raw.flush(handle)


def test_an_endorsement_key_of_another_vendor_is_not_challenged(world: World) -> None:
    certificate, public = _identity(world.stranger)
    with pytest.raises(VerificationError, match="the chain ends in root"):
        challenge(
            (certificate, *world.stranger.authority.chain),
            public,
            roots=(vendor_root(world.ours.tpm),),
            now=NOW,
        )
    with pytest.raises(VerificationError, match="does not verify"):
        _challenge(world.ours.tpm, public, ek=certificate)


def test_an_answer_is_taken_once_and_in_time(world: World) -> None:
    _, public = _identity(world.ours.tpm)
    enrolment = _challenge(world.ours.tpm, public)
    secret = _activate(world.ours.tpm, enrolment)
    other = _challenge(world.ours.tpm, public)
    with pytest.raises(VerificationError, match="the answer is not the secret"):
        other.answer(secret, now=NOW)
    with pytest.raises(VerificationError, match="after the challenge ended"):
        _challenge(world.ours.tpm, public).answer(secret, now=NOW + ANSWER_SECONDS)
    enrolment.answer(secret, now=NOW)
    with pytest.raises(VerificationError, match="had its answer already"):
        enrolment.answer(secret, now=NOW)


def test_an_altered_credential_does_not_open(world: World) -> None:
    _, public = _identity(world.ours.tpm)
    enrolment = _challenge(world.ours.tpm, public)
    blob = bytearray(enrolment.credential.credential_blob)
    for at in (0, 2, len(blob) // 2, len(blob) - 1):
        altered = bytes(blob[:at]) + bytes([blob[at] ^ 1]) + bytes(blob[at + 1 :])
        with world.ours.tpm.transport() as transport:
            attester = TpmAttester(transport)
            with pytest.raises(AttesterError, match="the TPM refused command 0x147"):
                attester.activate(altered, enrolment.credential.encrypted_secret)
            attester.close()


def test_the_vendors_root_vouches_for_no_attestation_key(world: World) -> None:
    """A policy that names the vendor's root by mistake accepts no endorsement key in an attestation key's place."""
    certificate, _ = _identity(world.ours.tpm)
    bundle = world.ours.bundle()
    document = json.loads(bundle.endorsements)
    chain = (certificate, *world.ours.tpm.authority.chain)
    document["ak_chain"] = [b64encode(der).decode() for der in chain]
    with pytest.raises(VerificationError, match="issued for another purpose"):
        verify(
            bundle.quote,
            json.dumps({**document, "crls": []}).encode(),
            roots=(named_root("the vendor", vendor_root(world.ours.tpm).sha256),),
            now=NOW,
            revocation_required=False,
        )
