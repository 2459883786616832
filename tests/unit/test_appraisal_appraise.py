"""Appraisal on simulated evidence: one honest bundle, and one named change at a time that refuses it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulated_evidence as attacks
from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester.simulation.quote import Layout
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EventLogMismatch,
    EvidenceError,
    FormatError,
    ResultExpired,
    StaleNonce,
    VerificationError,
)
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind, encode_bundle, parse_bundle
from cloister.evidence.eventlog import LaunchEvent, encode_event_log, replay
from cloister.verifier.claims import Claims
from cloister.verifier.trail import CHECKS
from simulated_evidence import NOW
from spec_vectors import SPEC

KEYS = b'{"keys":"of this workload"}'
NONCES = tuple(bytes([number]) * 32 for number in range(5))
EVENTS = (
    LaunchEvent(name="cloister.config", payload=b"\x01" * 32),
    LaunchEvent(name="cloister.program", payload=b"\x02" * 32),
)


def bundle(
    kind: TeeKind = "tdx",
    *,
    nonces: tuple[bytes, ...] = NONCES,
    index: int = 2,
    launch: tuple[LaunchEvent, ...] = EVENTS,
    debug: bool = False,
    devices: bytes = b"",
    layout: Layout | None = None,
    platform: str = "honest",
    **changes: Any,
) -> EvidenceBundle:
    """Honest evidence over ``nonces`` for the client at ``index``, then ``changes`` made to what travels."""
    tee = attacks.platform(platform).tee(kind, launch=launch, debug=debug, layout=layout, clock=lambda: NOW)
    raw = tee.quote(report_data(merkle.root(nonces), KEYS, devices))
    fields: dict[str, Any] = {
        "tee": raw.tee,
        "quote": raw.quote,
        "key_material": KEYS,
        "nonce_proof": NonceProof(index=index, size=len(nonces), path=merkle.inclusion_proof(nonces, index)),
        "event_log": raw.event_log,
        "device_evidence": devices,
        "endorsements": raw.endorsements,
    }
    return EvidenceBundle(**{**fields, **changes})


@cache
def policy(kind: TeeKind = "tdx", **changes: Any) -> Policy:
    tee = attacks.platform().tee(kind, launch=EVENTS)
    arguments: dict[str, Any] = {
        "tee": kind,
        "measurements": tee.measurements,
        "events": EVENTS,
        "min_tcb_evaluation_number": 1,
        "simulated_root": attacks.platform().root_sha256,
    }
    return load_policy(draft_policy(**{**arguments, **changes}), name="p.toml")


def judge(
    evidence: EvidenceBundle,
    rules: Policy | None = None,
    *,
    nonce: bytes = NONCES[2],
    now: int = NOW,
    not_after: Callable[[bytes], int | None] = lambda _: None,
    decode: Callable[[bytes], bytes] = lambda keys: keys,
    collateral: bytes | None = None,
) -> AttestationResult[bytes]:
    return appraise(
        evidence,
        nonce=nonce,
        policy=rules or policy(evidence.tee),
        now=now,
        decode=decode,
        not_after=not_after,
        collateral=collateral,
    )


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.name)
def test_an_honest_workload_is_accepted_with_seventeen_numbered_checks(layout: Layout) -> None:
    result = judge(bundle(layout.kind, layout=layout))
    assert result.keys == KEYS
    numbers = [check.number for check in result.checks]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(CHECKS) == set(range(1, 18))
    assert all(check.name and check.outcome not in ("", "ok") for check in result.checks)
    assert result.claims.checks == result.checks
    assert result.claims.simulated is True
    assert result.policy_digest == policy(layout.kind).digest
    assert result.verified_at == NOW
    assert result.require_fresh(NOW) == KEYS


def test_the_reference_page_has_a_row_for_every_check() -> None:
    page = (SPEC.parent / "reference" / "checks.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE))
    assert {int(number): name for number, name in rows.items()} == CHECKS


def test_events_become_claims_only_when_they_replay() -> None:
    assert judge(bundle()).claims.events == {event.name: event.payload for event in EVENTS}
    pins = measured()
    silent = only(**{name: pins[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")})
    assert judge(bundle(event_log=b""), silent).claims.events == {}


def measured(launch: tuple[LaunchEvent, ...] = EVENTS) -> dict[str, Any]:
    return dict(attacks.platform().tee("tdx", launch=launch).measurements)


def only(**pins: Any) -> Policy:
    """A TDX policy that pins the firmware and what is named, and says "any" to the rest."""
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    events = pins.pop("events", ())
    pins = {"mrtd": measured()["mrtd"], **pins}
    return policy.__wrapped__(measurements={name: pins.get(name, "any") for name in names}, events=events)


OTHER = LaunchEvent(name="cloister.config", payload=b"\x03" * 32)
LATE = LaunchEvent(name="cloister.late", payload=b"")
LIE = encode_event_log((OTHER, EVENTS[1]))
CLIENT_NONCE = b"\xff" * 32

REFUSED: dict[str, tuple[Callable[[], object], type[CloisterError], str]] = {
    # 1
    "another nonce": (lambda: judge(bundle(), nonce=CLIENT_NONCE), BindingMismatch, "nonce"),
    "a neighbour's nonce": (lambda: judge(bundle(), nonce=NONCES[3]), BindingMismatch, "nonce"),
    "a short nonce": (lambda: judge(bundle(), nonce=b"\0" * 16), StaleNonce, "32 bytes"),
    "an empty nonce": (lambda: judge(bundle(), nonce=b""), StaleNonce, "32 bytes"),
    "a proof that does not fit": (
        lambda: judge(bundle(nonce_proof=NonceProof(index=2, size=1000, path=()))),
        StaleNonce,
        "malformed",
    ),
    "a proof of a huge tree": (
        lambda: judge(bundle(nonce_proof=NonceProof(index=0, size=1 << 40, path=()))),
        StaleNonce,
        "malformed",
    ),
    "a replayed bundle of another window": (
        lambda: judge(bundle(nonces=(CLIENT_NONCE,), index=0)),
        BindingMismatch,
        "nonce",
    ),
    # 2
    "a kind that the policy does not accept": (
        lambda: judge(bundle("sgx"), policy()),
        AppraisalRefused,
        "does not accept a TEE of kind sgx",
    ),
    "an sgx quote that calls itself tdx": (
        lambda: judge(bundle("sgx", tee="tdx"), policy()),
        EvidenceError,
        "its quote is sgx",
    ),
    # 3 to 11
    "a quote that is none": (lambda: judge(bundle(quote=b"quote")), EvidenceError, "quote"),
    "no quote": (lambda: judge(bundle(quote=b"")), EvidenceError, "quote"),
    "a debug trust domain": (lambda: judge(bundle(debug=True)), VerificationError, "debug"),
    "a debug enclave": (lambda: judge(bundle("sgx", debug=True)), VerificationError, "debug"),
    "another simulated root": (
        lambda: judge(bundle(platform="attacker")),
        VerificationError,
        "chain ends in",
    ),
    "a simulated root under a vendor policy": (
        lambda: judge(bundle(), policy(simulated_root=None)),
        VerificationError,
        "Intel SGX Root CA",
    ),
    "no collateral": (lambda: judge(bundle(endorsements=b"")), EndorsementError, "no collateral"),
    "another vendor's collateral": (
        lambda: judge(bundle(), collateral=attacks.platform("attacker").collateral(NOW)),
        EndorsementError,
        "CRL",
    ),
    "after the collateral": (lambda: judge(bundle(), now=NOW + 40 * 86400), EndorsementError, "expired"),
    "a higher evaluation number wanted": (
        lambda: judge(bundle(), policy(min_tcb_evaluation_number=60000)),
        AppraisalRefused,
        "60000",
    ),
    # 12
    "other keys": (lambda: judge(bundle(key_material=KEYS + b" ")), BindingMismatch, "binds other keys"),
    "device evidence added": (lambda: judge(bundle(device_evidence=b"gpu")), BindingMismatch, "binds other"),
    "device evidence that nobody can verify": (
        lambda: judge(bundle(devices=b"gpu")),
        AppraisalRefused,
        "device evidence",
    ),
    # 13
    "an event log that lies": (lambda: judge(bundle(event_log=LIE)), EventLogMismatch, "does not replay"),
    "an event log in another order": (
        lambda: judge(bundle(event_log=encode_event_log(EVENTS[::-1]))),
        EventLogMismatch,
        "does not replay",
    ),
    "an event log cut short": (
        lambda: judge(bundle(event_log=encode_event_log(EVENTS[:1]))),
        EventLogMismatch,
        "does not replay",
    ),
    "an event log that is none": (lambda: judge(bundle(event_log=b"{}")), FormatError, "event log"),
    "an event log beside an enclave": (
        lambda: judge(bundle("sgx", event_log=encode_event_log(EVENTS))),
        EventLogMismatch,
        "no register",
    ),
    # 14
    "another launch": (lambda: judge(bundle(launch=(OTHER, EVENTS[1]))), AppraisalRefused, "rtmr3"),
    "another firmware": (lambda: judge(bundle(), only(mrtd=b"\0" * 48)), AppraisalRefused, "mrtd"),
    "another virtual hardware": (lambda: judge(bundle(), only(rtmr0=b"\0" * 48)), AppraisalRefused, "rtmr0"),
    "another kernel": (lambda: judge(bundle(), only(rtmr1=b"\0" * 48)), AppraisalRefused, "rtmr1"),
    "another image": (lambda: judge(bundle(), only(rtmr2=b"\0" * 48)), AppraisalRefused, "rtmr2"),
    "another enclave": (
        lambda: judge(bundle("sgx", launch=(OTHER,))),
        AppraisalRefused,
        "mrenclave",
    ),
    # 15
    "a required event that did not happen": (
        lambda: judge(bundle(launch=EVENTS[:1]), only(events=EVENTS)),
        AppraisalRefused,
        "'cloister.program' is required",
    ),
    "required events, and no log": (
        lambda: judge(bundle(event_log=b""), only(events=EVENTS)),
        AppraisalRefused,
        "is required",
    ),
    "a required event with another payload": (
        lambda: judge(bundle(launch=(OTHER, EVENTS[1])), only(events=EVENTS)),
        AppraisalRefused,
        "launch event 'cloister.config'",
    ),
    "an event that the policy does not list": (
        lambda: judge(bundle(launch=(*EVENTS, LATE)), only(events=EVENTS)),
        AppraisalRefused,
        "'cloister.late' happened",
    ),
    # 17
    "keys that have ended": (lambda: judge(bundle(), not_after=lambda _: NOW), EvidenceError, "ended"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_evidence_is_refused_for_its_own_reason(case: str) -> None:
    attempt, error, text = REFUSED[case]
    with pytest.raises(CloisterError) as refusal:
        attempt()
    assert type(refusal.value) is error
    assert text in str(refusal.value)


def test_any_payload_is_accepted_only_where_the_policy_says_any() -> None:
    text = draft_policy(
        tee="tdx",
        measurements={**measured(), "rtmr3": "any"},
        events=EVENTS,
        min_tcb_evaluation_number=1,
        simulated_root=attacks.platform().root_sha256,
    )
    loose = text.replace(f'"cloister.config" = ["{"01" * 32}"]', '"cloister.config" = "any"')
    assert loose != text
    other = bundle(launch=(OTHER, EVENTS[1]))
    assert judge(other, load_policy(loose, name="p")).claims.events["cloister.config"] == OTHER.payload
    with pytest.raises(AppraisalRefused, match=r"cloister\.config"):
        judge(other, load_policy(text, name="p"))


def sgx_policy(**changes: object) -> Policy:
    mrsigner = attacks.platform().tee("sgx").measurements["mrsigner"].hex()
    fields = {"mrsigner": f'["{mrsigner}"]', "isv_prod_id": product(), "min_isv_svn": version(), **changes}
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items())
    return load_policy(
        'format = "cloister/policy/v1"\nmax_age_seconds = 60\n[tcb]\nmin_evaluation_number = 1\n'
        f'[roots]\nsimulated = "{attacks.platform().root_sha256}"\n[sgx]\n{lines}',
        name="p.toml",
    )


@cache
def enclave() -> Claims:
    return judge(bundle("sgx")).claims


def product() -> int:
    return int(enclave().details["isv_prod_id"])


def version() -> int:
    return int(enclave().details["isv_svn"])


def test_an_enclave_is_accepted_by_signer_product_and_version() -> None:
    assert judge(bundle("sgx"), sgx_policy()).keys == KEYS
    changes: dict[str, dict[str, object]] = {
        "mrsigner": {"mrsigner": f'["{"00" * 32}"]'},
        "isv_prod_id": {"isv_prod_id": product() + 1},
        "isv_svn": {"min_isv_svn": version() + 1},
    }
    for name, change in changes.items():
        with pytest.raises(AppraisalRefused, match=name):
            judge(bundle("sgx"), sgx_policy(**change))


def test_a_service_td_is_accepted_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.verifier import intel

    genuine = intel.verify
    bound = "5d" * 48

    def with_service_td(*args: Any, **kwargs: Any) -> Claims:
        claims = genuine(*args, **kwargs)
        return dataclasses.replace(claims, details={**claims.details, "mr_service_td": bound})

    monkeypatch.setattr(intel, "verify", with_service_td)
    with pytest.raises(AppraisalRefused, match="service TD 5d5d"):
        judge(bundle())
    text = draft_policy(
        tee="tdx",
        measurements=measured(),
        events=(),
        min_tcb_evaluation_number=1,
        simulated_root=attacks.platform().root_sha256,
    )
    assert judge(bundle(), load_policy(f'{text}service_td = ["{bound}"]\n', name="p")).keys == KEYS


def test_a_result_ends_at_the_earliest_of_its_ends() -> None:
    collateral_end = judge(bundle()).claims.collateral_expires
    assert judge(bundle(), policy(max_age_seconds=60)).expires == NOW + 60
    assert judge(bundle(), policy(max_age_seconds=60), not_after=lambda _: NOW + 30).expires == NOW + 30
    long = policy(max_age_seconds=30 * 86400)
    assert judge(bundle(), long, not_after=lambda _: NOW + 10**9).expires == collateral_end
    result = judge(bundle(), policy(max_age_seconds=60))
    assert result.require_fresh(NOW + 59) == KEYS
    with pytest.raises(ResultExpired):
        result.require_fresh(NOW + 60)


def test_keys_are_not_looked_at_before_the_quote_that_binds_them() -> None:
    seen: list[bytes] = []

    def decode(data: bytes) -> bytes:
        seen.append(data)
        return data

    for evidence, nonce in (
        (bundle(key_material=b"attacker"), NONCES[2]),
        (bundle(), CLIENT_NONCE),
        (bundle(launch=(OTHER,)), NONCES[2]),
        (bundle(quote=bundle(debug=True).quote), NONCES[2]),
    ):
        with pytest.raises(CloisterError):
            judge(evidence, nonce=nonce, decode=decode)
    assert seen == []
    judge(bundle(), decode=decode)
    assert seen == [KEYS]


def test_keys_that_do_not_decode_give_no_result() -> None:
    def decode(_: bytes) -> bytes:
        raise FormatError("key material names no key")

    with pytest.raises(FormatError):
        judge(bundle(), decode=decode)


def test_collateral_can_be_given_in_place_of_what_travelled() -> None:
    own = bundle().endorsements
    assert judge(bundle(endorsements=b"junk"), collateral=own).keys == KEYS


def test_a_result_cannot_be_made_or_changed_by_hand() -> None:
    claims = judge(bundle()).claims
    with pytest.raises(TypeError, match="never by hand"):
        AttestationResult(
            keys=b"", claims=claims, policy_digest="", verified_at=0, expires=1 << 40, checks=()
        )
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge(bundle()).keys = b"attacker"  # type: ignore[misc]
    for change in ({"keys": b"attacker"}, {"expires": 1 << 40}, {"claims": dataclasses.replace(claims)}):
        with pytest.raises(TypeError, match="never by hand"):
            dataclasses.replace(judge(bundle()), **change)


@given(st.data())
def test_a_bundle_altered_anywhere_gives_the_same_keys_or_our_own_error(data: st.DataObject) -> None:
    wire = bytearray(travelling())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = judge(parse_bundle(bytes(wire)), policy())
    except CloisterError:
        return
    # Only unsigned padding and the collateral's unused parts may change without notice: never what was attested.
    honest = judge(bundle())
    assert (result.keys, result.claims, result.expires) == (honest.keys, honest.claims, honest.expires)


@cache
def travelling() -> bytes:
    return encode_bundle(bundle())


def test_the_replayed_register_is_the_quoted_one() -> None:
    assert judge(bundle()).claims.measurements["rtmr3"] == replay(EVENTS)
