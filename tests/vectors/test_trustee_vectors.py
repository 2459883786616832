"""What Trustee publishes of its own protocol, against our reading of it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from cloister.broker.profiles import Announced, present
from cloister.broker.protocol import HashName
from cloister.broker.trustee import (
    GuestRuntime,
    InitData,
    bound_runtime,
    init_data_digest,
    parse_bound_runtime,
)
from cloister.broker.trustee_binding import device_nonce, report_data
from cloister.broker.trustee_evidence import read_additional, read_primary
from cloister.encoding import convert, encode_json
from cloister.endorsements.amd import parse_snp_endorsements
from cloister.endorsements.roots import AMD_ROOTS
from cloister.errors import (
    EndorsementError,
    EvidenceError,
    FormatError,
    NetworkError,
    VerificationError,
)
from cloister.evidence.bundle import TeeKind
from cloister.evidence.nvidia import parse_device_evidence
from cloister.evidence.quote import parse_quote
from cloister.evidence.snp import parse_report
from cloister.evidence.tcg_log import parse_tcg_log
from cloister.verifier.snp import verify
from nvidia_vectors import evidence as gpu_evidence
from shared_data import vectors
from snp_vectors import COCO, DEBUG, MILAN, NOW, VLEK, report, signing_key
from spec_vectors import spec_vectors
from trustee_guest import Guest, nvidia, snp_members

CHALLENGE = b'{"nonce":"' + base64.b64encode(bytes(32)) + b'","extra-params":""}'


def test_structured_runtime_data_hashes_as_trustees_own_test_says() -> None:
    digest = hashlib.sha384(encode_json({"b": 1, "a": "test", "c": {"d": "e"}})).hexdigest()
    assert digest == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    )


def test_the_evidence_of_a_captured_request_is_read() -> None:
    request = json.loads(vectors("coco-trustee/request.json").read_text())["verification_requests"][0]
    text = request["evidence"]
    evidence = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    primary = read_primary(request["tee"], evidence)
    assert primary.quote == vectors("coco-trustee/occlum_quote.dat").read_bytes()


@pytest.mark.parametrize("name", ["tdx_quote_5.dat", "tdx_quote_6.dat"])
def test_a_captured_trust_domain_with_its_log_is_read(name: str) -> None:
    quote = vectors(f"coco-trustee/{name}").read_bytes()
    log = vectors("coco-trustee/CCEL_data_gcp").read_bytes()
    shown = {"quote": base64.b64encode(quote).decode(), "cc_eventlog": base64.b64encode(log).decode()}
    primary = read_primary("tdx", shown)
    assert (primary.quote, primary.firmware_log) == (quote, log)
    parse_quote(primary.quote)
    assert len(parse_tcg_log(primary.firmware_log, algorithm="sha384", registers="rtmr")) > 10


def shown(name: str, **changes: Any) -> dict[str, Any]:
    """A captured report as a guest would have sent it, with its certificate in the host's table."""
    data = report(name)
    members = snp_members(parse_report(data), data[672:816])
    kind = "VLEK" if name == VLEK else "VCEK"
    table = [{"cert_type": kind, "data": list(signing_key(name))}]
    return {"attestation_report": members, "cert_chain": table, **changes}


@pytest.mark.parametrize("name", [MILAN, COCO, VLEK, DEBUG])
def test_every_captured_report_comes_back_byte_for_byte(name: str) -> None:
    assert read_primary("snp", shown(name)).quote == report(name)


@pytest.mark.parametrize("name", [COCO, VLEK])
def test_a_captured_report_verifies_with_the_certificate_of_the_hosts_table(name: str) -> None:
    primary = read_primary("snp", shown(name))
    assert parse_snp_endorsements(primary.endorsements).signing_key == signing_key(name)
    assert primary.signed_by_vlek is (name == VLEK)
    claims = verify(primary.quote, primary.endorsements, roots=AMD_ROOTS, now=NOW, revocation_required=False)
    assert claims.tee == "snp"


def test_captured_devices_are_read() -> None:
    devices = gpu_evidence("nvidia-attestation-sdk/multi_gpu_hopper.json").devices
    assert parse_device_evidence(read_additional(nvidia(devices))).devices == devices


def test_a_carried_certificate_serves_where_the_vendor_cannot_be_reached() -> None:
    asked = []

    def unreachable(kind: TeeKind, quote: bytes) -> bytes:
        asked.append((kind, quote))
        raise NetworkError("down")

    def presented(name: str, **changes: Any) -> bytes:
        body = Guest("snp").attestation(CHALLENGE, lambda _: shown(name, **changes))
        found = present(Announced("trustee", "snp"), json.dumps(body).encode(), collateral=unreachable)
        return parse_snp_endorsements(found.bundle.endorsements).signing_key

    assert presented(COCO) == signing_key(COCO)
    assert asked == [("snp", report(COCO))]
    assert presented(VLEK) == signing_key(VLEK)
    assert len(asked) == 1, "nobody has a VLEK's certificate but the cloud that loaded it"
    with pytest.raises(NetworkError):
        presented(COCO, cert_chain=None)


TABLES: dict[str, list[dict[str, Any]]] = {
    "two keys": [{"cert_type": "VCEK", "data": [1]}, {"cert_type": "VCEK", "data": [1]}],
    "two lists": [{"cert_type": "VCEK", "data": [1]}, *[{"cert_type": "CRL", "data": [1]}] * 2],
    "a key that is no certificate": [{"cert_type": "VCEK", "data": [1, 2, 3]}],
    "a number over a byte": [{"cert_type": "VCEK", "data": [256]}],
    "a negative number": [{"cert_type": "VCEK", "data": [-1]}],
    "an unknown type": [{"cert_type": "VKEK", "data": [1]}],
    "a hundred entries": [{"cert_type": {"OTHER": "uuid"}, "data": []}] * 100,
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_certificate_table_of_another_form_is_refused(table: list[dict[str, Any]]) -> None:
    with pytest.raises((FormatError, EvidenceError, EndorsementError)):
        read_primary("snp", shown(COCO, cert_chain=table))


def test_a_key_of_the_other_kind_in_the_table_is_not_taken() -> None:
    table = [{"cert_type": "VLEK", "data": list(signing_key(VLEK))}]
    assert read_primary("snp", shown(COCO, cert_chain=table)).endorsements == b""


REPORTS: dict[str, tuple[str, object]] = {
    "a number that does not fit": ("vmpl", 1 << 32),
    "a negative number": ("guest_svn", -1),
    "a short field": ("measurement", [0] * 47),
    "a long field": ("report_data", [0] * 65),
    "a number over a byte": ("host_data", [256] * 32),
    "a text": ("chip_id", "00"),
    "a floating number": ("policy", 1.5),
    "an unknown member": ("_reserved", 0),
}


@pytest.mark.parametrize(("name", "value"), REPORTS.values(), ids=REPORTS.keys())
def test_a_report_of_another_form_is_refused(name: str, value: object) -> None:
    evidence = shown(COCO)
    evidence["attestation_report"][name] = value
    with pytest.raises(FormatError):
        read_primary("snp", evidence)


@pytest.mark.parametrize("name", ["guest_svn", "policy", "vmpl", "plat_info"])
def test_a_member_that_the_chip_did_not_sign_is_refused(name: str) -> None:
    evidence = shown(COCO)
    evidence["attestation_report"][name] ^= 1 << 16
    primary = read_primary("snp", evidence)
    with pytest.raises((VerificationError, EvidenceError)):
        verify(primary.quote, primary.endorsements, roots=AMD_ROOTS, now=NOW, revocation_required=False)


@pytest.mark.parametrize("kind", ["sampledevice", "nvidiadpu", "hygondcu", "tpm", "snp", "NVIDIA", "\x1b[2J"])
def test_additional_evidence_of_another_kind_is_refused_by_its_name(kind: str) -> None:
    with pytest.raises(EvidenceError, match="not verified here") as refused:
        read_additional(json.dumps({kind: {}}))
    assert refused.value.what.isprintable()


DEVICES = [
    "[]",
    "1",
    '{"nvidia":{}}',
    '{"nvidia":{"device_evidence_list":[{}]}}',
    "{",
    '{"nvidia":1,"nvidia":2}',
]


@pytest.mark.parametrize("text", DEVICES)
def test_additional_evidence_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        read_additional(text)


def test_no_devices_and_devices_of_another_architecture_are_refused() -> None:
    with pytest.raises(EvidenceError, match="0 devices"):
        read_additional('{"nvidia":{"device_evidence_list":[]}}')
    device = {"arch": "VOLTA", "evidence": "AA==", "certificate": "AA=="}
    with pytest.raises(EvidenceError, match="architecture"):
        read_additional(json.dumps({"nvidia": {"device_evidence_list": [device]}}))
    assert read_additional("") == read_additional("{}") == b""


def test_the_vectors_of_the_specification_hold() -> None:
    vector = spec_vectors("kbs.md")
    runtime = convert(vector["runtime_data"], GuestRuntime, what="runtime data")
    bound = bound_runtime(runtime, vector["additional_evidence"])
    assert bound.decode() == vector["bound"]
    hashes: tuple[HashName, ...] = ("sha256", "sha384", "sha512")
    for name in hashes:
        assert report_data(bound, name).hex() == vector["report_data"][name]
        assert device_nonce(parse_bound_runtime(bound), name).hex() == vector["device_nonce"][name]
    digest = init_data_digest(InitData(format="toml", body=vector["init_data"]["body"]))
    for field, size in (("mr_config_id", 48), ("host_data", 32), ("config_id", 64)):
        assert digest[:size].hex() == vector["init_data"][field]
