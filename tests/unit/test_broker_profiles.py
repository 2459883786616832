"""Evidence profiles: a guest of the Confidential Containers from its announcement to an answer, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import simulated_nvidia as gpus
import simulated_snp as snp
from cloister import merkle
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester.simulation.snp_report import encode_signed, sign_report
from cloister.broker import protocol, trustee
from cloister.broker.jwe import TeeKeyPair, encrypt
from cloister.broker.profiles import (
    Announced,
    KeptTrustee,
    Presented,
    announce,
    appraise_presented,
    challenge,
    present,
)
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, Unsupported
from cloister.broker.trustee_binding import TrusteeBinding
from cloister.encoding import decode_json, encode_json
from cloister.endorsements.amd import encode_snp_endorsements
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EventLogMismatch,
    EvidenceError,
    FormatError,
    NetworkError,
    StaleNonce,
)
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind, encode_bundle
from cloister.evidence.snp import SnpReport
from simulated_evidence import NOW, platform
from tcg_logs import Logged, log
from trustee_guest import REQUEST, Guest, canonical, intel, nvidia, snp_members

NONCE = bytes(range(32))
OTHER = bytes(reversed(range(32)))
INIT_DATA = 'version = "0.1.0"\nalgorithm = "{}"\n\n[data]\n"aa.toml" = "[token]"\n'
URI = "kbs:///models/key/demo"
Evidence = Callable[[bytes], dict[str, Any]]


def vendor(kind: TeeKind, quote: bytes) -> bytes:
    """What the simulated vendors would answer."""
    assert quote
    if kind == "snp":
        return encode_snp_endorsements(snp.platform().endorsements(NOW))
    return platform().collateral(NOW, kind)


@cache
def policy(tee: TeeKind = "tdx", extra: str = "", **measured: bytes) -> Policy:
    """Accepts the simulated guest without any launch events; ``extra`` are lines of its table."""
    text = draft_policy(
        tee=tee,
        measurements={**platform().tee(tee, clock=lambda: NOW).measurements, **measured},
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )
    return load_policy(text + extra, name="test")


def attested(
    guest: Guest,
    evidence: Evidence,
    *,
    rules: Policy | None = None,
    session: bytes = NONCE,
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    request: bytes | None = None,
    **said: Any,
) -> tuple[Presented, AttestationResult[RuntimeData]]:
    """The whole way. ``session`` is the nonce the broker compares with; ``change`` bends the body on its way."""
    announced = announce(request or guest.request())
    body = guest.attestation(encode_json(challenge(announced, NONCE)), evidence, **said)
    change(body)
    presented = present(
        announced,
        json.dumps(body).encode(),
        collateral=vendor,
        device_collateral=lambda _: gpus.show().endorsements,
    )
    rules = rules or policy(announced.tee)
    return presented, appraise_presented(presented, nonce=session, policy=rules, now=NOW, not_after=NOW + 300)


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521", "RSA"])
@pytest.mark.parametrize("tee", ["tdx", "sgx"])
def test_a_guest_goes_the_whole_way_and_opens_its_answer(tee: TeeKind, curve: str) -> None:
    guest = Guest(tee, curve)
    presented, result = attested(guest, intel(tee))
    assert presented.profile == "trustee"
    assert result.keys == presented.runtime
    assert result.claims.tee == tee
    assert result.expires == NOW + 300
    assert encode_json(result.keys.tee_pubkey) == canonical(guest.jwk)
    assert guest.open(encrypt(b"secret", result.keys.tee_pubkey, URI)) == b"secret"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["sha256", "sha384", "sha512", "sm3"], "sha384"),
        (["SHA512", "SHA256"], "sha512"),
        (["sm3", "sha256"], "sha256"),
        (None, "sha384"),
    ],
)
def test_the_hash_that_was_chosen_binds(offered: list[str] | None, chosen: str) -> None:
    guest = Guest()
    parameters: object = "" if offered is None else {"supported-hash-algorithms": offered}
    request = guest.request(**{"extra-params": parameters})
    assert announce(request) == Announced("trustee", "tdx", "0.4.0", chosen)  # type: ignore[arg-type]
    answer = json.loads(encode_json(challenge(announce(request), NONCE)))
    assert answer["extra-params"] == {"selected-hash-algorithm": chosen}
    _, result = attested(guest, intel(), request=request)
    bound = hashlib.new(chosen, guest.bound(answer["nonce"])).digest()
    assert result.claims.report_data == bound + bytes(64 - len(bound))


def test_the_order_of_members_on_the_way_does_not_count() -> None:
    def reorder(body: dict[str, Any]) -> None:
        runtime = body["runtime-data"]
        key = dict(reversed(runtime["tee-pubkey"].items()))
        body["runtime-data"] = {"tee-pubkey": key, "nonce": runtime["nonce"]}

    attested(Guest(), intel(), change=reorder)


def test_a_guest_on_sev_snp_goes_the_whole_way() -> None:
    guest = Guest("snp")
    _, result = attested(guest, chip(), rules=snp.policy())
    assert result.claims.tee == "snp"
    assert guest.open(encrypt(b"secret", result.keys.tee_pubkey, URI)) == b"secret"


def chip(
    change: Callable[[SnpReport], SnpReport] = lambda report: report,
    *,
    table: list[dict[str, Any]] | None = None,
) -> Evidence:
    """Evidence of the simulated chip; ``table`` is the host's."""

    def evidence(data: bytes) -> dict[str, Any]:
        report = change(snp.platform().report(data))
        signed = sign_report(encode_signed(report), snp.platform().keys["vcek"])
        return {"attestation_report": snp_members(report, signed[672:816]), "cert_chain": table}

    return evidence


def test_a_service_that_cannot_be_reached_is_no_reason_to_accept() -> None:
    def unreachable(kind: TeeKind, quote: bytes) -> bytes:
        raise NetworkError("down")

    guest = Guest("snp")
    announced = announce(guest.request())
    body = json.dumps(guest.attestation(encode_json(challenge(announced, NONCE)), chip())).encode()
    with pytest.raises(NetworkError):
        present(announced, body, collateral=unreachable)


def test_evidence_without_endorsements_from_anywhere_is_refused() -> None:
    guest = Guest()
    announced = announce(guest.request())
    body = json.dumps(guest.attestation(encode_json(challenge(announced, NONCE)), intel())).encode()
    presented = present(announced, body)
    with pytest.raises(EndorsementError):
        appraise_presented(presented, nonce=NONCE, policy=policy(), now=NOW, not_after=None)


def test_a_guests_firmware_log_becomes_claims_and_its_end_mark_does_no_harm() -> None:
    event = Logged(index=4, kind=5, data=b"an event of the attestation agent")
    measured = log(event)
    rtmr3 = hashlib.sha384(bytes(48) + event.extended("sha384")).digest()
    evidence = intel(log=measured + b"\xff" * 8, rtmr3=rtmr3)
    _, result = attested(Guest(), evidence, rules=policy(rtmr3=rtmr3))
    assert [one.data for one in result.claims.measured_events] == [event.data]
    with pytest.raises(EventLogMismatch):
        attested(Guest(), intel(log=measured))


def test_what_is_kept_names_hash_init_data_and_evidence() -> None:
    body = INIT_DATA.format("sha384")
    digest = hashlib.sha384(body.encode()).digest()
    rules = policy(extra='mr_config_id = "any"\n')
    presented, _ = attested(Guest(), intel(launched_with=digest), rules=rules, init_data=body)
    kept = decode_json(presented.record, KeptTrustee, what="kept")
    assert (kept.hash, kept.init_data, kept.evidence) == ("sha384", body, presented.bundle)
    assert presented.evidence_sha256 == hashlib.sha256(presented.record).hexdigest()


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("tee", ["tdx", "sgx", "snp"])
def test_init_data_must_be_what_the_guest_was_launched_with(tee: TeeKind, algorithm: str) -> None:
    body = INIT_DATA.format(algorithm)
    digest = hashlib.new(algorithm, body.encode()).digest()
    if tee == "snp":
        field = digest[:32].ljust(32, b"\0")
        evidence = chip(lambda report: replace(report, host_data=field))
        rules = snp.policy(host_data="any")
    else:
        size = 48 if tee == "tdx" else 64
        field = digest[:size].ljust(size, b"\0")
        evidence = intel(tee, launched_with=field)
        rules = policy(tee, extra=f'{"mr_config_id" if tee == "tdx" else "config_id"} = "any"\n')
    guest = Guest(tee)
    presented, _ = attested(guest, evidence, rules=rules, init_data=body)
    assert presented.init_data_digest == digest
    for swapped in (body + "\n", body.replace("[token]", "[other]"), body.replace("\n\n", "\n")):
        with pytest.raises(BindingMismatch, match="init-data"):
            attested(guest, evidence, rules=rules, init_data=swapped)


def test_a_policy_decides_about_init_data_that_nobody_shows() -> None:
    with pytest.raises(AppraisalRefused):
        attested(Guest(), intel(launched_with=b"\x01" * 48))


def devices(nonce: bytes) -> str:
    return nvidia(gpus.reports(gpus.machine().devices, nonce))


@cache
def policy_with_gpus() -> Policy:
    source = gpus.machine()
    roots = f'simulated_device = "{source.device_root_sha256}"\nsimulated_rim = "{source.rim_root_sha256}"\n'
    text = draft_policy(
        tee="tdx",
        measurements=platform().tee("tdx", clock=lambda: NOW).measurements,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    ).replace("[roots]\n", f"[roots]\n{roots}")
    table = (
        '[nvidia]\ngpus = 2\narchitectures = ["hopper"]\nmodes = ["cc"]\nrevocation = "required"\n'
        'rims = "required"\ndriver_versions = ["000.00.01"]\nminimum_vbios_version = "00.00.00.00.01"\n'
    )
    return load_policy(text + table, name="test")


def test_the_devices_of_a_guest_are_verified_with_it() -> None:
    guest = Guest()
    additional = devices(guest.device_nonce(protocol.encode_nonce(NONCE)))
    _, result = attested(guest, intel(), rules=policy_with_gpus(), additional=additional)
    assert [device.kind for device in result.claims.devices] == ["gpu", "gpu"]


DEVICES: dict[str, tuple[Callable[[Guest], str], Callable[[dict[str, Any]], None], type[CloisterError]]] = {
    "of another session": (
        lambda guest: devices(guest.device_nonce(protocol.encode_nonce(OTHER))),
        lambda body: None,
        StaleNonce,
    ),
    "of another guest": (
        lambda guest: devices(Guest().device_nonce(protocol.encode_nonce(NONCE))),
        lambda body: None,
        StaleNonce,
    ),
    "left out on the way": (
        lambda guest: devices(guest.device_nonce(protocol.encode_nonce(NONCE))),
        lambda body: body["tee-evidence"].update(additional_evidence=""),
        BindingMismatch,
    ),
    "written anew on the way": (
        lambda guest: devices(guest.device_nonce(protocol.encode_nonce(NONCE))),
        lambda body: body["tee-evidence"].update(
            additional_evidence=body["tee-evidence"]["additional_evidence"] + " "
        ),
        BindingMismatch,
    ),
    "put in on the way": (
        lambda guest: "",
        lambda body: body["tee-evidence"].update(additional_evidence=devices(bytes(32))),
        BindingMismatch,
    ),
}


@pytest.mark.parametrize(("made", "change", "error"), DEVICES.values(), ids=DEVICES.keys())
def test_devices_that_the_guest_does_not_bind_are_refused(
    made: Callable[[Guest], str], change: Callable[[dict[str, Any]], None], error: type[CloisterError]
) -> None:
    guest = Guest()
    with pytest.raises(error):
        attested(guest, intel(), rules=policy_with_gpus(), additional=made(guest), change=change)


def test_device_evidence_that_is_not_the_bound_text_is_refused() -> None:
    guest = Guest()
    additional = devices(guest.device_nonce(protocol.encode_nonce(NONCE)))
    presented, _ = attested(guest, intel(), rules=policy_with_gpus(), additional=additional)
    for evidence in (b"", gpus.show(nonce=guest.device_nonce(protocol.encode_nonce(NONCE))).evidence + b" "):
        bundle = structs.replace(presented.bundle, device_evidence=evidence)
        with pytest.raises(BindingMismatch, match="device evidence"):
            TrusteeBinding("sha384").bind(bundle, NONCE)


def _set(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        target: Any = body
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = to

    return change


def _runtime(guest: Guest) -> dict[str, Any]:
    return {
        "additional-evidence": "",
        "nonce": protocol.encode_nonce(NONCE),
        "tee-pubkey": guest.jwk,
    }


BOUND: dict[str, Callable[[Guest], bytes]] = {
    "the order in which the library writes": lambda guest: json.dumps(
        _runtime(guest), separators=(",", ":")
    ).encode(),
    "white space": lambda guest: json.dumps(_runtime(guest), sort_keys=True).encode(),
    "a line feed at the end": lambda guest: canonical(_runtime(guest)) + b"\n",
    "no additional evidence": lambda guest: canonical(
        {"nonce": protocol.encode_nonce(NONCE), "tee-pubkey": guest.jwk}
    ),
    "other additional evidence": lambda guest: canonical({**_runtime(guest), "additional-evidence": "{}"}),
    "another key": lambda guest: canonical({**_runtime(guest), "tee-pubkey": Guest().jwk}),
    "another nonce": lambda guest: canonical({**_runtime(guest), "nonce": protocol.encode_nonce(OTHER)}),
    "nonce and key one after the other": lambda guest: (
        protocol.encode_nonce(NONCE) + guest.jwk["x"] + guest.jwk["y"]
    ).encode(),
    "nothing": lambda guest: b"",
}


@pytest.mark.parametrize("bind", BOUND.values(), ids=BOUND.keys())
def test_a_quote_over_anything_but_the_canonical_form_is_refused(bind: Callable[[Guest], bytes]) -> None:
    guest = Guest()
    with pytest.raises(BindingMismatch):
        attested(guest, intel(), bind=bind(guest))


def _other_data(make: Callable[[bytes], bytes]) -> Evidence:
    return lambda data: intel()(make(data))


REPORT_DATA: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda data: bytes(64),
    "the hash behind its zeros": lambda data: bytes(16) + data[:48],
    "half of the hash": lambda data: data[:24].ljust(64, b"\0"),
    "something behind the hash": lambda data: data[:63] + b"\x01",
    "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
}


@pytest.mark.parametrize("make", REPORT_DATA.values(), ids=REPORT_DATA.keys())
def test_report_data_is_compared_whole(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BindingMismatch):
        attested(Guest(), _other_data(make))


@pytest.mark.parametrize("used", ["sha256", "sha512"])
def test_another_hash_than_was_chosen_is_refused(used: str) -> None:
    guest = Guest()
    announced = announce(guest.request())
    answer = json.loads(encode_json(challenge(announced, NONCE)))
    answer["extra-params"]["selected-hash-algorithm"] = used  # what somebody in between would like
    body = json.dumps(guest.attestation(json.dumps(answer).encode(), intel())).encode()
    presented = present(announced, body, collateral=vendor)
    with pytest.raises(BindingMismatch):
        appraise_presented(presented, nonce=NONCE, policy=policy(), now=NOW, not_after=None)


def test_the_nonce_of_another_session_is_refused() -> None:
    with pytest.raises(StaleNonce):
        attested(Guest(), intel(), session=OTHER)


def test_a_key_exchanged_on_the_way_is_refused() -> None:
    with pytest.raises(BindingMismatch):
        attested(Guest(), intel(), change=_set("runtime-data", "tee-pubkey", to=Guest().jwk))


def test_evidence_of_another_kind_than_was_announced_is_refused() -> None:
    for announced, shown in (("tdx", "sgx"), ("sgx", "tdx")):
        with pytest.raises(CloisterError):
            attested(Guest(announced), lambda data, shown=shown: {"quote": intel(shown)(data)["quote"]})
    with pytest.raises(FormatError):
        attested(Guest("snp"), intel())


BODIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "an unknown field": _set("x", to=1),
    "an unknown field of runtime data": _set("runtime-data", "x", to=1),
    "a purpose, which guests have none of": _set("runtime-data", "purpose", to="batch"),
    "an unknown field of the evidence": _set("tee-evidence", "x", to=1),
    "an unknown field of the primary evidence": _set(
        "tee-evidence", "primary_evidence", "aa_eventlog", to=""
    ),
    "primary evidence as text": _set("tee-evidence", "primary_evidence", to="{}"),
    "additional evidence as an object": _set("tee-evidence", "additional_evidence", to={}),
    "no additional evidence": lambda body: body["tee-evidence"].pop("additional_evidence"),
    "our profile's bundle": _set("tee-evidence", "primary_evidence", to={"format": "cloister/evidence/v1"}),
    "RSA with PKCS #1 v1.5": _set(
        "runtime-data", "tee-pubkey", to={"kty": "RSA", "alg": "RSA1_5", "n": "_" * 342, "e": "AQAB"}
    ),
    "the older wrap": _set("runtime-data", "tee-pubkey", "alg", to="ECDH-ES"),
    "ML-KEM": _set("runtime-data", "tee-pubkey", to={"kty": "AKP", "alg": "ML-KEM-768+A192KW", "pub": "AA"}),
    "a private key": _set("runtime-data", "tee-pubkey", "d", to="AAAA"),
    "a short nonce": _set("runtime-data", "nonce", to="AAAA"),
    "a nonce in base64url": _set("runtime-data", "nonce", to="__________________________________________8"),
    "init-data in JSON": _set("init-data", to={"format": "json", "body": "{}"}),
    "init-data that is no TOML": _set("init-data", to={"format": "toml", "body": "{"}),
    "init-data with an unknown hash": _set(
        "init-data", to={"format": "toml", "body": INIT_DATA.format("sm3")}
    ),
    "init-data of another version": _set(
        "init-data", to={"format": "toml", "body": INIT_DATA.format("sha384").replace("0.1.0", "0.2.0")}
    ),
    "init-data with an unknown field": _set(
        "init-data", to={"format": "toml", "body": "x = 1\n" + INIT_DATA.format("sha384")}
    ),
    "init-data that names a hash twice": _set(
        "init-data", to={"format": "toml", "body": 'algorithm = "sha256"\n' + INIT_DATA.format("sha384")}
    ),
    "init-data nested for ever": _set("init-data", to={"format": "toml", "body": "x = " + "[" * 100_000}),
    "init-data that is too long": _set(
        "init-data",
        to={"format": "toml", "body": INIT_DATA.format("sha384") + "#" * trustee.MAX_INIT_DATA},
    ),
}


@pytest.mark.parametrize("change", BODIES.values(), ids=BODIES.keys())
def test_a_body_of_another_form_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(FormatError):
        attested(Guest(), intel(), change=change)


@pytest.mark.parametrize("name", ["runtime-data", "nonce", "primary_evidence", "quote"])
def test_a_name_that_stands_twice_is_refused(name: str) -> None:
    guest = Guest()
    announced = announce(guest.request())
    body = json.dumps(guest.attestation(encode_json(challenge(announced, NONCE)), intel()))
    with pytest.raises(FormatError, match="twice"):
        present(announced, body.replace(f'"{name}":', f'"{name}": "x", "{name}":', 1).encode())


ANNOUNCEMENTS: dict[str, tuple[dict[str, object], str]] = {
    "version 0.1.1": ({"version": "0.1.1"}, "version"),
    "version 0.3.0": ({"version": "0.3.0"}, "version"),
    "the sample TEE": ({"tee": "sample"}, "tee"),
    "Azure's vTPM": ({"tee": "az-snp-vtpm"}, "tee"),
    "Azure's vTPM as the library spells it": ({"tee": "azsnpvtpm"}, "tee"),
    "a TPM": ({"tee": "tpm"}, "tee"),
    "a TEE in capitals": ({"tee": "TDX"}, "tee"),
    "a GPU alone": ({"tee": "nvidia"}, "tee"),
    "SM3 alone": ({"extra-params": {"supported-hash-algorithms": ["sm3"]}}, "profile"),
    "no hash at all": ({"extra-params": {"supported-hash-algorithms": []}}, "profile"),
    "hashes as text": ({"extra-params": {"supported-hash-algorithms": "sha384"}}, "profile"),
    "a thousand hashes": ({"extra-params": {"supported-hash-algorithms": ["sha384"] * 1000}}, "profile"),
    "both profiles": (
        {"extra-params": {"profile": protocol.PROFILE, "supported-hash-algorithms": ["sha384"]}},
        "profile",
    ),
    "another profile": ({"extra-params": {"profile": "trustee"}}, "profile"),
    "unknown parameters": ({"extra-params": {"x": 1}}, "profile"),
    "a text": ({"extra-params": "sha384"}, "profile"),
}


@pytest.mark.parametrize(("changes", "kind"), ANNOUNCEMENTS.values(), ids=ANNOUNCEMENTS.keys())
def test_an_announcement_of_anything_else_is_refused_by_its_name(
    changes: dict[str, object], kind: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        announce(json.dumps({**REQUEST, **changes}).encode())
    assert refused.value.kind == kind


@pytest.mark.parametrize("parameters", ["", {}, {"supported-hash-algorithms": ["sha384"]}])
def test_every_way_a_guest_announces_itself_is_the_guests_profile(parameters: object) -> None:
    assert announce(Guest().request(**{"extra-params": parameters})) == Announced("trustee", "tdx")


@given(st.binary(max_size=200))
def test_an_attestation_raises_only_its_own_errors(data: bytes) -> None:
    for announced in (Announced("trustee", "tdx"), Announced("trustee", "snp")):
        with pytest.raises(CloisterError):
            present(announced, data)
    with pytest.raises((FormatError, Unsupported)):
        announce(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(primary=_JSON, additional=_JSON, init_data=_JSON, tee=st.sampled_from(["tdx", "sgx", "snp"]))
def test_any_json_in_the_parts_raises_only_their_own_errors(
    primary: object, additional: object, init_data: object, tee: TeeKind
) -> None:
    body = {
        "runtime-data": {"nonce": protocol.encode_nonce(NONCE), "tee-pubkey": Guest().jwk},
        "tee-evidence": {"primary_evidence": primary, "additional_evidence": json.dumps(additional)},
        "init-data": init_data,
    }
    with pytest.raises(CloisterError):
        present(Announced("trustee", tee), json.dumps(body).encode())


def ours(runtime: RuntimeData) -> EvidenceBundle:
    keys = encode_json(runtime)
    raw = platform().tee("tdx", clock=lambda: NOW).quote(report_data(merkle.root([NONCE]), keys))
    return EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=keys,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        endorsements=raw.endorsements,
    )


def our_runtime() -> RuntimeData:
    return RuntimeData(nonce=protocol.encode_nonce(NONCE), tee_pubkey=TeeKeyPair.generate().public)


def test_our_own_workload_goes_its_way_under_its_profile() -> None:
    announced = announce(protocol.auth_request("tdx"))
    assert announced == Announced("cloister/evidence/v1", "tdx")
    assert encode_json(challenge(announced, NONCE)) == encode_json(
        protocol.Challenge(nonce=protocol.encode_nonce(NONCE))
    )
    runtime = our_runtime()
    bundle = ours(runtime)
    body = Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle))
    presented = present(announced, encode_json(body))
    assert presented.record == encode_bundle(bundle)
    result = appraise_presented(presented, nonce=NONCE, policy=policy(), now=NOW, not_after=NOW + 300)
    assert result.keys == runtime


def test_our_binding_is_refused_in_a_guests_session() -> None:
    runtime = our_runtime()
    quote = base64.b64encode(ours(runtime).quote).decode()
    body = {
        "runtime-data": json.loads(encode_json(runtime)),
        "tee-evidence": {"primary_evidence": {"quote": quote}, "additional_evidence": ""},
    }
    presented = present(announce(Guest().request()), json.dumps(body).encode(), collateral=vendor)
    with pytest.raises(BindingMismatch):
        appraise_presented(presented, nonce=NONCE, policy=policy(), now=NOW, not_after=None)


def test_a_guests_binding_is_refused_in_a_session_of_ours() -> None:
    presented, _ = attested(Guest(), intel())
    runtime = encode_json(presented.runtime)
    bundle = json.loads(encode_bundle(presented.bundle))
    bundle["key_material"] = base64.b64encode(runtime).decode()
    body = {
        "runtime-data": json.loads(runtime),
        "tee-evidence": {"primary_evidence": bundle, "additional_evidence": ""},
    }
    shown = present(announce(protocol.auth_request("tdx")), json.dumps(body).encode())
    with pytest.raises(BindingMismatch):
        appraise_presented(shown, nonce=NONCE, policy=policy(), now=NOW, not_after=None)


def test_another_kind_of_bundle_than_was_announced_is_refused_in_a_session_of_ours() -> None:
    runtime = our_runtime()
    body = Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=ours(runtime)))
    with pytest.raises(EvidenceError, match="announced"):
        present(announce(protocol.auth_request("sgx")), encode_json(body))
